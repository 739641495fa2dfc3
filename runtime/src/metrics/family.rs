//! Metric families as constants: name, kind, labels and HELP in one place.
//!
//! A crate lists its families with [`families!`](crate::families) in its `metrics.rs`, and a
//! service passes the list to its process ([`Service::METRICS`]). The process declares them at the
//! start: the recorder gets HELP and unit, and every series with known labels starts at 0, since
//! `increase()` needs the zero.
//!
//! [`Service::METRICS`]: crate::process::Service::METRICS

use std::fmt::Write as _;

use metrics::{
    Counter, Gauge, Histogram, SharedString, Unit, counter, describe_counter, describe_gauge,
    describe_histogram, gauge, histogram,
};

/// The kind of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only rises; begins at 0 with the process.
    Counter,
    /// Rises and falls.
    Gauge,
    /// A distribution of times in seconds.
    Histogram,
}

/// A label of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label {
    /// Its name.
    pub name: &'static str,
    /// Values known from the start; empty when they are known only later.
    pub values: &'static [&'static str],
}

/// One metric family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Family {
    /// The name, including its unit.
    pub name: &'static str,
    /// The kind.
    pub kind: Kind,
    /// HELP.
    pub help: &'static str,
    /// The labels.
    pub labels: &'static [Label],
    /// The condition under which the family exists; empty: always.
    pub when: &'static str,
}

impl Family {
    /// A family without labels that always exists.
    #[must_use]
    pub const fn new(kind: Kind, name: &'static str, help: &'static str) -> Self {
        Self { name, kind, help, labels: &[], when: "" }
    }

    /// Adds labels.
    #[must_use]
    pub const fn by(self, labels: &'static [Label]) -> Self {
        Self { labels, ..self }
    }

    /// Adds a condition.
    #[must_use]
    pub const fn only(self, when: &'static str) -> Self {
        Self { when, ..self }
    }

    /// The unit, taken from the name.
    #[must_use]
    pub fn unit(&self) -> &'static str {
        let name = self.name.trim_end_matches("_total").trim_end_matches("_max");
        match name {
            _ if name.ends_with("_timestamp_seconds") => "Unix time in seconds",
            _ if name.ends_with("_seconds") => "seconds",
            _ if name.ends_with("_bytes") => "bytes",
            _ => "number",
        }
    }

    /// Describes the family, and initializes each known series to 0.
    pub fn declare(&self) {
        let unit = match self.unit() {
            "bytes" => Unit::Bytes,
            "number" => Unit::Count,
            _ => Unit::Seconds,
        };
        match self.kind {
            Kind::Counter => describe_counter!(self.name, unit, self.help),
            Kind::Gauge => describe_gauge!(self.name, unit, self.help),
            Kind::Histogram => describe_histogram!(self.name, unit, self.help),
        }
        if !self.when.is_empty() {
            return;
        }
        for labels in combinations(self.labels) {
            self.begin(&labels);
        }
    }

    /// Initializes the series with these labels to 0.
    pub(crate) fn begin(&self, labels: &[(&'static str, &'static str)]) {
        let labels = || labels.iter().copied();
        match self.kind {
            Kind::Counter => self.counter_by(labels()).increment(0),
            Kind::Gauge => self.gauge_by(labels()).increment(0.0),
            Kind::Histogram => drop(self.histogram_by(labels())),
        }
    }

    /// The counter without labels.
    pub fn counter(&self) -> Counter {
        counter!(self.name)
    }

    /// The counter with these labels.
    pub fn counter_by<V: Into<SharedString>>(
        &self,
        labels: impl IntoIterator<Item = (&'static str, V)>,
    ) -> Counter {
        counter!(self.name, pairs(labels))
    }

    /// The gauge without labels.
    pub fn gauge(&self) -> Gauge {
        gauge!(self.name)
    }

    /// The gauge with these labels.
    pub fn gauge_by<V: Into<SharedString>>(
        &self,
        labels: impl IntoIterator<Item = (&'static str, V)>,
    ) -> Gauge {
        gauge!(self.name, pairs(labels))
    }

    /// Sets the value of a gauge, or the total of a counter that is counted elsewhere.
    pub fn set(&self, value: f64) {
        match self.kind {
            Kind::Counter => self.counter().absolute(value as u64),
            Kind::Gauge | Kind::Histogram => self.gauge().set(value),
        }
    }

    /// The histogram without labels.
    pub fn histogram(&self) -> Histogram {
        histogram!(self.name)
    }

    /// The histogram with these labels.
    pub fn histogram_by<V: Into<SharedString>>(
        &self,
        labels: impl IntoIterator<Item = (&'static str, V)>,
    ) -> Histogram {
        histogram!(self.name, pairs(labels))
    }

    /// Appends the family with one value as Prometheus text.
    pub(super) fn push(&self, text: &mut String, labels: &str, value: f64) {
        let Self { name, help, .. } = self;
        let kind = self.kind_name();
        writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name}{labels} {value}")
            .expect("writing to a String");
    }

    /// The kind as in Prometheus text.
    #[must_use]
    pub fn kind_name(&self) -> &'static str {
        match self.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

fn pairs<V: Into<SharedString>>(
    labels: impl IntoIterator<Item = (&'static str, V)>,
) -> Vec<metrics::Label> {
    labels.into_iter().map(|(name, value)| metrics::Label::new(name, value.into())).collect()
}

/// All combinations of the label values; none if the values of a label are not known.
fn combinations(labels: &[Label]) -> Vec<Vec<(&'static str, &'static str)>> {
    labels.iter().fold(vec![Vec::new()], |found, Label { name, values }| {
        let with = |before: Vec<_>| {
            values.iter().map(move |value| [before.clone(), vec![(*name, *value)]].concat())
        };
        found.into_iter().flat_map(with).collect()
    })
}

/// Constants for metric families, and `FAMILIES` with all of them.
///
/// ```
/// runtime::families! {
///     certificates "probe";
///     STARTS: Counter "probe_starts_total", "Starts of the probe.";
///     ANSWERS: Counter "probe_answers_total" { outcome: &["good", "bad"] }, "Answers by outcome.";
///     LINKED: Gauge "probe_linked" when "a peer is configured", "1 while the peer answers.";
/// }
/// assert_eq!(FAMILIES.len(), 6);
/// assert_eq!((ANSWERS.labels[0].name, LINKED.when), ("outcome", "a peer is configured"));
/// ```
///
/// `certificates` adds the families of the TLS files of a service with this prefix.
#[macro_export]
macro_rules! families {
    (certificates $service:literal; $($rest:tt)*) => {
        $crate::families! {
            $($rest)*
            CERTIFICATE_EXPIRY: Gauge (concat!($service, "_certificate_expiry_timestamp_seconds"))
                { tls: &[], file: &[] },
                "End of the first certificate of the file that ends.";
            CERTIFICATE_LOADED: Gauge (concat!($service, "_certificate_last_reload_successful"))
                { tls: &[] },
                "1 if the TLS files on the disk could be loaded, else 0.";
            CERTIFICATE_FAILURES: Counter (concat!($service, "_certificate_reload_failures_total"))
                { tls: &[] },
                "Loads of TLS files that failed.";
        }
    };
    ($(
        $name:ident: $kind:ident $text:tt
        $({ $($label:ident: $values:expr),+ $(,)? })? $(when $when:literal)?, $help:literal;
    )*) => {
        $(
            #[doc = $help]
            pub const $name: $crate::metrics::Family = $crate::metrics::Family::new(
                $crate::metrics::Kind::$kind,
                $text,
                $help,
            )$(.by(&[$($crate::metrics::Label {
                name: stringify!($label),
                values: $values,
            }),+]))?$(.only($when))?;
        )*
        /// All metric families of this crate.
        pub const FAMILIES: &[$crate::metrics::Family] = &[$($name,)*];
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Label = Label { name: "a", values: &["1", "2"] };
    const B: Label = Label { name: "b", values: &["x"] };
    const LATER: Label = Label { name: "c", values: &[] };

    #[test]
    fn known_labels_are_combined_and_unknown_ones_wait() {
        assert_eq!(combinations(&[]), [[]]);
        let both = [[("a", "1"), ("b", "x")], [("a", "2"), ("b", "x")]];
        assert_eq!(combinations(&[A, B]), both);
        assert!(combinations(&[A, LATER]).is_empty());
    }

    #[test]
    fn the_name_gives_the_unit() {
        let unit = |name| Family::new(Kind::Gauge, name, "").unit();
        assert_eq!(unit("p_cells_behind_seconds_max"), "seconds");
        assert_eq!(unit("p_expiry_timestamp_seconds"), "Unix time in seconds");
        assert_eq!(unit("process_cpu_seconds_total"), "seconds");
        assert_eq!(unit("p_list_bytes_total"), "bytes");
        assert_eq!(unit("p_groups"), "number");
    }

    #[test]
    fn a_declared_family_has_help_and_zeros_unless_it_has_a_condition() {
        let (recorder, handle) = crate::metrics::recorder("test", "1");
        metrics::with_local_recorder(&recorder, || {
            Family::new(Kind::Counter, "p_total", "Some.").by(&[A, B]).declare();
            Family::new(Kind::Gauge, "p_linked", "Linked.").only("configured").declare();
        });
        let text = handle.render();
        assert!(text.contains("# HELP p_total Some.\n# TYPE p_total counter\n"), "{text}");
        assert!(text.contains("p_total{a=\"2\",b=\"x\"} 0\n"), "{text}");
        assert!(!text.contains("p_linked"), "{text}");
    }
}
