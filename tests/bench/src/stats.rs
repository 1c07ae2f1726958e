//! Medians and percentiles, and nothing cleverer.

/// The median; of an even number of values the mean of the two in the middle. NaN if there are none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// The smallest value that `percent` per cent of the values do not exceed (nearest rank); sorts them.
/// 0 if there are none.
pub(crate) fn percentile(values: &mut [u32], percent: f64) -> f64 {
    values.sort_unstable();
    let rank = (values.len() as f64 * percent / 100.0).ceil() as usize;
    values.get(rank.saturating_sub(1)).copied().map_or(0.0, f64::from)
}

/// Half of the range between the quartiles, over the median: how far a round strays from the usual one.
pub(crate) fn spread(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let half = sorted.len() / 2;
    if half == 0 {
        return 0.0;
    }
    let (low, high) = (median(&sorted[..half]), median(&sorted[sorted.len() - half..]));
    (high - low) / 2.0 / median(&sorted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_outlier_does_not_move_the_median() {
        assert_eq!(median(&[1.0, 1000.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 1000.0, 2.0]), 3.0);
    }

    #[test]
    fn the_median_of_nothing_is_no_number() {
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let mut values: Vec<u32> = (1..=200).rev().collect();
        assert_eq!(percentile(&mut values, 50.0), 100.0);
        assert_eq!(percentile(&mut values, 99.0), 198.0);
        assert_eq!(percentile(&mut values, 100.0), 200.0);
        assert_eq!(percentile(&mut [7], 1.0), 7.0);
        assert_eq!(percentile(&mut [], 99.0), 0.0);
    }

    #[test]
    fn equal_rounds_have_no_spread() {
        assert_eq!(spread(&[3.0, 3.0, 3.0]), 0.0);
        assert_eq!(spread(&[5.0]), 0.0);
        assert_eq!(spread(&[9.0, 10.0, 11.0]), 0.1);
    }
}
