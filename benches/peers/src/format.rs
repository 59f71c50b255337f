//! Formats figures for people.

use serde::Serialize;

use crate::statistics::Ratio;

/// The unit of a comparison's figures. All are costs: less is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    Nanoseconds,
    Bytes,
}

impl Unit {
    pub fn show(self, value: f64) -> String {
        let steps: &[(f64, &str)] = match self {
            Self::Nanoseconds => &[(1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1.0, "ns")],
            Self::Bytes => &[(1024.0 * 1024.0, "MiB"), (1024.0, "KiB"), (1.0, "B")],
        };
        let (step, unit) = steps
            .iter()
            .find(|(step, _)| value >= *step)
            .or(steps.last())
            .copied()
            .unwrap_or((1.0, ""));
        format!("{} {unit}", three_digits(value / step))
    }
}

/// `7.0 (6.1 to 8.3)`.
pub fn ratio(ratio: Ratio) -> String {
    format!(
        "{} ({} to {})",
        three_digits(ratio.median),
        three_digits(ratio.min),
        three_digits(ratio.max)
    )
}

/// Three significant digits; from 100 on whole numbers, with commas.
pub fn three_digits(value: f64) -> String {
    if value < 9.995 {
        format!("{value:.2}")
    } else if value < 99.95 {
        format!("{value:.1}")
    } else {
        with_commas(value.round() as u64)
    }
}

fn with_commas(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits_and_a_fitting_unit() {
        let time = |value| Unit::Nanoseconds.show(value);
        assert_eq!(time(0.5), "0.50 ns");
        assert_eq!(time(21.43), "21.4 ns");
        assert_eq!(time(1_250.0), "1.25 µs");
        assert_eq!(time(87_600_000.0), "87.6 ms");
        assert_eq!(Unit::Bytes.show(33_554_432.0), "32.0 MiB");
        assert_eq!(three_digits(9.996), "10.0");
        assert_eq!(three_digits(99.96), "100");
        assert_eq!(three_digits(1_234_567.8), "1,234,568");
    }
}
