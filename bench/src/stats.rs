//! The few statistics that the figures need. Pure.

use crate::error::BenchError;

/// The value below or at which the share `q` (0 to 1) of `values` lies.
///
/// # Errors
/// There are no values: `what` was not measured.
pub fn quantile(what: &'static str, values: &[f64], q: f64) -> Result<f64, BenchError> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() as f64 * q).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().ok_or(BenchError::NothingMeasured(what))
}

/// The middle one of `values`.
///
/// # Errors
/// There are no values: `what` was not measured.
pub fn median(what: &'static str, values: &[f64]) -> Result<f64, BenchError> {
    quantile(what, values, 0.5)
}

/// The slope of the straight line through `points` with the least squared error: what each unit of x costs, without what is paid once. 0 for fewer than
/// two different x.
#[must_use]
pub fn slope(points: &[(f64, f64)]) -> f64 {
    let n = points.len() as f64;
    let (sum_x, sum_y) = points.iter().fold((0.0, 0.0), |(x, y), p| (x + p.0, y + p.1));
    let (mean_x, mean_y) = (sum_x / n, sum_y / n);
    let (over, under) = points.iter().fold((0.0, 0.0), |(over, under), (x, y)| {
        let dx = x - mean_x;
        (over + dx * (y - mean_y), under + dx * dx)
    });
    if under > 0.0 { over / under } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();

        assert_eq!(median("x", &values).unwrap(), 50.0);
        assert_eq!(quantile("x", &values, 0.99).unwrap(), 99.0);
        assert_eq!(quantile("x", &values, 1.0).unwrap(), 100.0);
        assert_eq!(median("x", &[7.0]).unwrap(), 7.0);
    }

    #[test]
    fn the_median_of_nothing_is_an_error() {
        assert!(median("x", &[]).unwrap_err().to_string().contains('x'));
    }

    #[test]
    fn the_slope_leaves_out_what_is_paid_once() {
        assert!((slope(&[(1.0, 12.0), (2.0, 14.0), (5.0, 20.0)]) - 2.0).abs() < 1e-9);
        assert_eq!(slope(&[(1.0, 12.0)]), 0.0);
        assert_eq!(slope(&[]), 0.0);
    }
}
