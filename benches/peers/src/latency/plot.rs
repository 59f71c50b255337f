//! The results as pictures: latency over percentile, a line for each contender.
//!
//! Both axes are logarithmic. The percentiles' is so from their far end: each "nine" takes the same
//! room, so that the last hundredth of the jobs is not the last hundredth of the picture.

use std::ops::Range;

use anyhow::Result;
use plotters::coord::combinators::IntoLogRange;
use plotters::prelude::*;

use super::contenders::Contender;
use super::scenario::Scenario;
use super::schedule::Nanos;
use super::series::{Kind, Series};
use super::{Outcome, table};

const SIZE: (u32, u32) = (860, 480);
const FONT: &str = "sans-serif";
/// Points to each nine of a line.
const POINTS_PER_NINE: u32 = 50;

/// What is drawn of each scenario.
pub const PLOTS: [Kind; 3] = Kind::ALL;

pub fn file_name(scenario: &Scenario, kind: Kind) -> String {
    format!("latency-{}-{}.svg", scenario.slug(), kind.slug())
}

/// One kind of latency in one scenario, as SVG.
pub fn draw(outcome: &Outcome, kind: Kind) -> Result<String> {
    let mut svg = String::new();
    draw_into(&mut svg, outcome, kind)?;
    Ok(svg)
}

fn draw_into(svg: &mut String, outcome: &Outcome, kind: Kind) -> Result<()> {
    let lines: Vec<_> = outcome
        .parts
        .iter()
        .map(|part| (part.contender, part.merged.latencies.of(kind)))
        .filter(|(_, series)| series.len() > 0)
        .collect();
    let nines = lines.iter().map(|(_, series)| nines_of(series));
    let nines = nines.fold(1.0, f64::max);

    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let title = format!("{}: {}", outcome.scenario, kind.title());
    let mut chart = ChartBuilder::on(&root)
        .caption(title, (FONT, 20))
        .margin(12)
        .margin_right(30)
        .x_label_area_size(44)
        .y_label_area_size(76)
        .build_cartesian_2d(0.0..nines, decades(&lines).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("percentile of the jobs")
        .y_desc("latency")
        .x_labels(nines.ceil() as usize + 1)
        .x_label_formatter(&|&nines| percentile(nines))
        .y_label_formatter(&|&nanos| table::time(nanos))
        .label_style((FONT, 15))
        .axis_desc_style((FONT, 16))
        .light_line_style(BLACK.mix(0.04))
        .bold_line_style(BLACK.mix(0.15))
        .draw()?;
    for (contender, series) in lines {
        let style = colour(contender).stroke_width(2);
        let legend = move |(x, y)| PathElement::new([(x, y), (x + 22, y)], style);
        chart
            .draw_series(LineSeries::new(points(series), style))?
            .label(contender.name())
            .legend(legend);
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .label_font((FONT, 16))
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    root.present()?;
    Ok(())
}

/// Told apart by those who see red and green alike, too.
fn colour(contender: Contender) -> RGBColor {
    match contender {
        Contender::Empty => RGBColor(130, 130, 130),
        Contender::Channel => RGBColor(230, 130, 0),
        Contender::ChannelSpins => RGBColor(240, 190, 110),
        Contender::ChannelNaps => RGBColor(150, 170, 80),
        Contender::Logmill => RGBColor(0, 90, 180),
        Contender::Naps => RGBColor(0, 150, 130),
        Contender::Spins => RGBColor(150, 60, 160),
        Contender::Interval => RGBColor(200, 60, 60),
    }
}

/// How many nines the percentile has that all samples but one are below.
fn nines_of(series: &Series) -> f64 {
    (series.len() as f64).log10()
}

fn points(series: &Series) -> impl Iterator<Item = (f64, Nanos)> + '_ {
    let end = nines_of(series);
    let steps = (end * f64::from(POINTS_PER_NINE)).floor() as u32;
    let nines = (0..=steps).map(|step| f64::from(step) / f64::from(POINTS_PER_NINE));
    nines
        .map(|nines| (nines, series.at(1.0 - 10_f64.powf(-nines)).max(1)))
        .chain([(end, series.max().max(1))])
}

/// Whole powers of ten around all that is drawn.
fn decades(lines: &[(Contender, &Series)]) -> Range<Nanos> {
    let least = lines.iter().map(|(_, series)| series.at(0.0)).min();
    let most = lines.iter().map(|(_, series)| series.max()).max();
    let (least, most) = (least.unwrap_or(1).max(1), most.unwrap_or(1).max(1));
    10_u64.pow(least.ilog10())..10_u64.pow(most.ilog10() + 1)
}

/// The percentile with so many nines: 0, 90, 99, 99.9...
fn percentile(nines: f64) -> String {
    let decimals = (nines.round() as usize).saturating_sub(2);
    format!("{:.decimals$} %", 100.0 - 10_f64.powf(2.0 - nines))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nines_read_as_percentiles() {
        let texts = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0].map(percentile);
        let expected = ["0 %", "90 %", "99 %", "99.9 %", "99.99 %", "99.999 %"];
        assert_eq!(texts, expected);
    }

    #[test]
    fn a_line_begins_at_the_least_and_ends_at_the_greatest() {
        let mut series = Series::new();
        for latency in 21..=1_020 {
            series.record(latency);
        }
        let points: Vec<_> = points(&series).collect();
        assert_eq!(points[0], (0.0, 21));
        let &(nines, last) = points.last().unwrap();
        assert!((nines - 3.0).abs() < 1e-9 && last >= 1_020);
        assert!(points.is_sorted_by(|one, next| one.0 <= next.0 && one.1 <= next.1));
        assert_eq!(decades(&[(Contender::Empty, &series)]), 10..10_000);
    }
}
