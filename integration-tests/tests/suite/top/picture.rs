//! A screen as a PNG file. The glyphs come from a bitmap font, so that no browser and no
//! rasteriser is needed, and the same screen gives the same file on every machine.

use std::{fs::File, io::BufWriter, path::Path};

use spleen_font::{FONT_12X24, PSF2Font};
use vt100::{Color, Screen};

const WIDTH: usize = 12;
const HEIGHT: usize = 24;

/// Indices of the default colours.
const FOREGROUND: u8 = 7;
const BACKGROUND: u8 = 0;

/// The colours of a terminal, on a dark background.
const COLOURS: [[u8; 3]; 8] = [
    [0x14, 0x17, 0x1a],
    [0xf0, 0x5f, 0x5f],
    [0x6c, 0xc6, 0x6c],
    [0xe6, 0xc3, 0x4d],
    [0x5c, 0x94, 0xe8],
    [0xc3, 0x7b, 0xd8],
    [0x4f, 0xc1, 0xd0],
    [0xd0, 0xd4, 0xd8],
];

fn index(colour: Color, default: u8) -> u8 {
    match colour {
        Color::Default => default,
        Color::Idx(index) if usize::from(index) < COLOURS.len() => index,
        other => panic!("{other:?} is none of the colours that a user can choose"),
    }
}

/// The pixels of the line and the blocks that bars consist of.
fn shape(text: &str) -> Option<fn(usize, usize) -> bool> {
    Some(match text {
        "─" => |_, y| y == HEIGHT / 2,
        "░" => |x, y| x % 2 == 0 && (x / 2 + y) % 2 == 0,
        "▒" => |x, y| (x + y) % 2 == 0,
        "▓" => |x, y| x % 2 == 1 || (x / 2 + y) % 2 == 1,
        "█" => |_, _| true,
        _ => return None,
    })
}

/// Writes the screen.
pub(super) fn write(screen: &Screen, path: &Path) {
    let (rows, columns) = screen.size();
    let (rows, columns) = (rows.get(), columns.get());
    let (width, height) = (usize::from(columns) * WIDTH, usize::from(rows) * HEIGHT);
    let mut pixels = vec![BACKGROUND; width * height];
    let mut font = PSF2Font::new(FONT_12X24).expect("the font is valid");
    for row in 0..rows {
        for column in 0..columns {
            let cell = screen.cell(row, column).expect("the cell is on the screen");
            let mut colours =
                [index(cell.bgcolor(), BACKGROUND), index(cell.fgcolor(), FOREGROUND)];
            if cell.inverse() {
                colours.reverse();
            }
            let mut set = |x: usize, y: usize, on: bool| {
                let (x, y) = (usize::from(column) * WIDTH + x, usize::from(row) * HEIGHT + y);
                pixels[y * width + x] = colours[usize::from(on)];
            };
            for y in 0..HEIGHT {
                for x in 0..WIDTH {
                    set(x, y, false);
                }
            }
            let text = if cell.contents().is_empty() { " " } else { cell.contents() };
            if let Some(shape) = shape(text) {
                (0..HEIGHT).for_each(|y| (0..WIDTH).for_each(|x| set(x, y, shape(x, y))));
                continue;
            }
            // Only ASCII: the crate misreads the table of other characters.
            let text = if text.is_ascii() { text } else { "?" };
            let glyph = font.glyph_for_utf8(text.as_bytes()).expect("the font has ASCII");
            for (y, line) in glyph.enumerate() {
                for (x, on) in line.enumerate().filter(|(x, _)| *x < WIDTH) {
                    set(x, y, on);
                }
            }
        }
    }
    let file = File::create(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let [width, height] = [width, height].map(|size| u32::try_from(size).expect("it is small"));
    let mut encoder = png::Encoder::new(BufWriter::new(file), width, height);
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_palette(COLOURS.concat());
    encoder.set_filter(png::FilterType::NoFilter);
    encoder.set_compression(png::Compression::Best);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().expect("the file can be written");
    writer.write_image_data(&pixels).expect("the file can be written");
}
