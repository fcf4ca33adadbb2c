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

// The BPF instruction set has no count-leading-zeros, and every branch of a search for the highest bit
// doubles the paths that the verifier has to walk. So: fill all bits below the highest, and look the
// product with a de Bruijn sequence up. No branch at all.
const DE_BRUIJN: u64 = 0x03f7_9d71_b4cb_0a89;

static LOG2_OF_PRODUCT: [u8; 64] = {
    let mut table = [0; 64];
    let mut power = 0;
    while power < 64 {
        let filled = u64::MAX >> (63 - power);
        table[(filled.wrapping_mul(DE_BRUIJN) >> 58) as usize] = power as u8;
        power += 1;
    }
    table
};

#[inline(always)]
fn floor_log2(value: u64) -> u32 {
    let mut filled = value;
    filled |= filled >> 1;
    filled |= filled >> 2;
    filled |= filled >> 4;
    filled |= filled >> 8;
    filled |= filled >> 16;
    filled |= filled >> 32;
    u32::from(LOG2_OF_PRODUCT[(filled.wrapping_mul(DE_BRUIJN) >> 58) as usize])
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
        for power in 0..64 {
            assert_eq!(floor_log2(1 << power), power);
            assert_eq!(floor_log2(u64::MAX >> (63 - power)), power);
        }
        assert_eq!(bucket_of((1 << MAX_VALUE_POWER) - 1), BUCKETS - 1);
    }

    #[test]
    fn buckets_follow_each_other_without_a_gap() {
        for index in 1..BUCKETS {
            assert_eq!(bucket_range(index).0, bucket_range(index - 1).1 + 1, "bucket {index}");
        }
    }
}
