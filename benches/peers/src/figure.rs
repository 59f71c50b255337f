//! The figure at the top of the README: the cost of a job from enqueue to ack, as bars.
//!
//! The axis is logarithmic, since the bars differ by factors of thousands. There is no background,
//! and the grey of the text is readable on a light page and on a dark one.

use std::fmt::Write as _;

use crate::contender::Outcome;

/// The name of the file in `docs/benchmarks`.
pub const FILE_NAME: &str = "end-to-end.svg";

/// The comparison that is drawn.
const COMPARISON: &str = "end-to-end/1x1/64";
/// The contenders that are drawn, if they have a figure.
const DRAWN: [&str; 5] = [
    "logmill",
    "crossbeam channel",
    "SQLite",
    "Redis",
    "beanstalkd",
];

const WIDTH: f64 = 760.0;
const ROW: f64 = 34.0;
const BAR: f64 = 20.0;
/// Where the bars begin, to the right of the names.
const LEFT: f64 = 150.0;
/// Room for a figure to the right of the longest bar.
const RIGHT: f64 = 80.0;
const TOP: f64 = 34.0;
const TEXT: &str = "#7d8590";
const OURS: &str = "#2f81f7";
const OTHERS: &str = "#8b949e";

/// The figure as SVG; `None` if the comparison was not run.
pub fn draw(outcomes: &[Outcome]) -> Option<String> {
    let outcome = outcomes.iter().find(|outcome| outcome.name == COMPARISON)?;
    let bars: Vec<(&str, f64)> = DRAWN
        .iter()
        .filter_map(|name| Some((*name, outcome.row(name)?.median(0)?)))
        .collect();
    bars.iter().find(|(name, _)| *name == DRAWN[0])?;
    Some(svg(&bars, |value| outcome.unit.show(value)))
}

fn svg(bars: &[(&str, f64)], show: impl Fn(f64) -> String) -> String {
    let shortest = bars.iter().map(|bar| bar.1).fold(f64::INFINITY, f64::min);
    let longest = bars.iter().map(|bar| bar.1).fold(0.0, f64::max);
    let first = shortest.log10().floor();
    let last = longest.log10().ceil().max(first + 1.0);
    let x = |value: f64| LEFT + (value.log10() - first) / (last - first) * (WIDTH - LEFT - RIGHT);
    let bottom = TOP + ROW * bars.len() as f64;
    let height = bottom + 30.0;
    // Writing to a string does not fail.
    let mut text = String::new();
    let _ = writeln!(
        text,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="14" fill="{TEXT}">"#
    );
    let _ = writeln!(
        text,
        r#"<text x="{LEFT}" y="18">from enqueue to ack, for each job of 64 B (logarithmic)</text>"#
    );
    for decade in first as i32..=last as i32 {
        let value = 10_f64.powi(decade);
        let at = x(value);
        let _ = writeln!(
            text,
            r#"<line x1="{at:.1}" y1="{TOP}" x2="{at:.1}" y2="{bottom}" stroke="{TEXT}" stroke-opacity="0.3"/>"#
        );
        let label = show(value).replace(".00", "").replace(".0", "");
        let _ = writeln!(
            text,
            r#"<text x="{at:.1}" y="{:.1}" text-anchor="middle" font-size="12">{label}</text>"#,
            bottom + 18.0
        );
    }
    for (row, (name, value)) in bars.iter().enumerate() {
        let middle = TOP + ROW * (row as f64 + 0.5);
        let (end, color) = (x(*value), if row == 0 { OURS } else { OTHERS });
        let _ = writeln!(
            text,
            r#"<text x="{:.1}" y="{:.1}" text-anchor="end">{name}</text>"#,
            LEFT - 10.0,
            middle + 5.0
        );
        let _ = writeln!(
            text,
            r#"<rect x="{LEFT}" y="{:.1}" width="{:.1}" height="{BAR}" rx="2" fill="{color}"/>"#,
            middle - BAR / 2.0,
            end - LEFT
        );
        let _ = writeln!(
            text,
            r#"<text x="{:.1}" y="{:.1}">{}</text>"#,
            end + 8.0,
            middle + 5.0,
            show(*value)
        );
    }
    text.push_str("</svg>\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Unit;

    #[test]
    fn each_has_a_bar_from_its_decade_on_and_its_figure() {
        let bars = [("logmill", 23.0), ("SQLite", 38_000.0)];
        let svg = svg(&bars, |value| Unit::Nanoseconds.show(value));
        let widths: Vec<f64> = svg
            .lines()
            .filter(|line| line.starts_with("<rect"))
            .filter_map(|line| {
                line.split("width=\"")
                    .nth(1)?
                    .split('"')
                    .next()?
                    .parse()
                    .ok()
            })
            .collect();
        assert_eq!(widths.len(), 2);
        assert!(0.0 < widths[0] && widths[0] < widths[1]);
        for text in ["logmill", "23.0 ns", "38.0 µs", ">10 ns<", ">100 µs<"] {
            assert!(svg.contains(text), "{text}: {svg}");
        }
    }

    #[test]
    fn without_the_comparison_there_is_no_figure() {
        assert_eq!(draw(&[]), None);
    }
}
