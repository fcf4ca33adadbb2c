//! Log-linear histograms: 16 equal steps in each power of two, so that a value is known to within 6.25 %.
//!
//! Values below 32 have a bucket each. A value of 2^34 or more is counted in the last bucket.

/// Steps in each power of two, as a power of two.
pub const GROUPING_POWER: u32 = 4;
/// Values up to `2^MAX_VALUE_POWER - 1` are told apart.
pub const MAX_VALUE_POWER: u32 = 34;
/// Number of buckets.
pub const BUCKETS: usize = ((MAX_VALUE_POWER - GROUPING_POWER + 1) << GROUPING_POWER) as usize;

/// Index of the bucket that holds `value`.
///
/// Always below [`BUCKETS`]. Written without loops, for the kernel's verifier.
#[inline(always)]
#[must_use]
pub fn bucket_of(value: u64) -> usize {
    let capped = if value >> MAX_VALUE_POWER != 0 { (1 << MAX_VALUE_POWER) - 1 } else { value };
    if capped < (2 << GROUPING_POWER) {
        return capped as usize;
    }
    let power = floor_log2(capped);
    let shift = power - GROUPING_POWER;
    (((shift as u64) << GROUPING_POWER) + (capped >> shift)) as usize
}

/// Smallest and largest value that bucket `index` holds, both inclusive. The last one's upper end is
/// `2^34 - 1`, although it also counts everything above.
#[must_use]
pub const fn bucket_range(index: usize) -> (u64, u64) {
    let index = index as u64;
    if index < 2 << GROUPING_POWER {
        return (index, index);
    }
    let shift = (index >> GROUPING_POWER) - 1;
    let lower = (index - (shift << GROUPING_POWER)) << shift;
    (lower, lower + (1 << shift) - 1)
}

// The BPF instruction set has no count-leading-zeros before cpu v4's successors; a binary search of
// shifts compiles to straight code there, and the host's compiler turns it into an instruction or two.
#[inline(always)]
fn floor_log2(value: u64) -> u32 {
    let mut rest = value;
    let mut power = 0;
    if rest >> 32 != 0 {
        rest >>= 32;
        power += 32;
    }
    if rest >> 16 != 0 {
        rest >>= 16;
        power += 16;
    }
    if rest >> 8 != 0 {
        rest >>= 8;
        power += 8;
    }
    if rest >> 4 != 0 {
        rest >>= 4;
        power += 4;
    }
    if rest >> 2 != 0 {
        rest >>= 2;
        power += 2;
    }
    power + (rest >> 1) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_in_the_range_of_its_bucket() {
        let mut value = 0_u64;
        while value < 1 << MAX_VALUE_POWER {
            let index = bucket_of(value);
            let (lower, upper) = bucket_range(index);
            assert!(index < BUCKETS && lower <= value && value <= upper, "{value} {index} {lower} {upper}");
            assert!((upper - lower) * 16 <= lower.max(16), "bucket {index} is wider than 6.25 %");
            value += 1 + value / 37;
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
        assert_eq!(bucket_of((1 << MAX_VALUE_POWER) - 1), BUCKETS - 1);
    }

    #[test]
    fn buckets_follow_each_other_without_a_gap() {
        for index in 1..BUCKETS {
            assert_eq!(bucket_range(index).0, bucket_range(index - 1).1 + 1, "bucket {index}");
        }
    }
}
