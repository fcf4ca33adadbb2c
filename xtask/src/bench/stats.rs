//! Order statistics: medians, because a round that something disturbed must not move the figure.

/// The value at a quantile between 0 and 1, between neighbours by proportion; none of nothing.
pub(super) fn quantile(samples: &[f64], at: f64) -> Option<f64> {
    let mut sorted: Vec<f64> = samples.iter().copied().filter(|sample| sample.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    let place = at.clamp(0.0, 1.0) * last as f64;
    let (low, high) = (place.floor() as usize, place.ceil() as usize);
    Some(sorted[low] + (sorted[high] - sorted[low]) * (place - low as f64))
}

/// The middle value.
pub(super) fn median(samples: &[f64]) -> Option<f64> {
    quantile(samples, 0.5)
}

/// The distance between the first and the third quartile.
pub(super) fn spread(samples: &[f64]) -> Option<f64> {
    Some(quantile(samples, 0.75)? - quantile(samples, 0.25)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_quartiles() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(spread(&[1.0, 2.0, 3.0, 4.0, 5.0]), Some(2.0));
        assert_eq!(spread(&[7.0]), Some(0.0));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn one_disturbed_round_does_not_move_the_median() {
        assert_eq!(median(&[10.0, 11.0, 9_000.0, 10.5, f64::NAN]), Some(10.75));
    }

    #[test]
    fn the_ends_of_a_quantile() {
        assert_eq!(quantile(&[1.0, 2.0, 9.0], 1.0), Some(9.0));
        assert_eq!(quantile(&[1.0, 2.0, 9.0], 0.0), Some(1.0));
    }
}
