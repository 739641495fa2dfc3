//! Output formats and the flags that select one.

use std::{io::IsTerminal as _, str::FromStr};

use clap::{Args, ValueEnum};

/// How results are printed.
#[derive(Debug, Clone, Args)]
pub struct OutputFlags {
    /// Output format: table, wide (a table with more columns), json (one object per line), yaml,
    /// or fields=NAME,NAME (a table of these fields, with values as in JSON)
    #[arg(short, long, global = true, value_name = "FORMAT", conflicts_with = "json")]
    output: Option<Format>,

    /// The same as --output json
    #[arg(long, global = true)]
    json: bool,

    /// Omit the headings of tables and records
    #[arg(long, global = true)]
    no_headers: bool,

    /// Colours: auto means on a terminal, unless the variable NO_COLOR is set
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    color: Color,
}

/// When output has colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Color {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// An output format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Format {
    Table,
    Wide,
    Json,
    Yaml,
    Fields(Vec<String>),
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "table" => Ok(Self::Table),
            "wide" => Ok(Self::Wide),
            "json" => Ok(Self::Json),
            "yaml" => Ok(Self::Yaml),
            _ => {
                let names = text.strip_prefix("fields=").filter(|names| !names.is_empty());
                let names = names.ok_or("not table, wide, json, yaml or fields=NAME,NAME")?;
                Ok(Self::Fields(names.split(',').map(str::to_owned).collect()))
            }
        }
    }
}

/// How results are printed, with the terminal and the environment considered.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    pub(crate) format: Format,
    pub(crate) headers: bool,
    pub(crate) color: bool,
}

impl Output {
    pub(crate) fn new(flags: &OutputFlags) -> Self {
        let OutputFlags { output, json, no_headers, color } = flags;
        let format = match output {
            Some(format) => format.clone(),
            None if *json => Format::Json,
            None => Format::Table,
        };
        let wanted = || std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let color = match color {
            Color::Auto => std::io::stdout().is_terminal() && wanted(),
            Color::Always => true,
            Color::Never => false,
        };
        Self { format, headers: !no_headers, color }
    }

    /// Whether errors are JSON objects.
    pub(crate) fn is_json(&self) -> bool {
        self.format == Format::Json
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_read() {
        for (text, format) in [
            ("table", Format::Table),
            ("wide", Format::Wide),
            ("json", Format::Json),
            ("yaml", Format::Yaml),
            ("fields=a", Format::Fields(vec!["a".to_owned()])),
            ("fields=a,b", Format::Fields(vec!["a".to_owned(), "b".to_owned()])),
        ] {
            assert_eq!(text.parse(), Ok(format), "{text}");
        }
        for text in ["", "JSON", "fields", "fields=", "jsonpath={.a}"] {
            text.parse::<Format>().unwrap_err();
        }
    }
}
