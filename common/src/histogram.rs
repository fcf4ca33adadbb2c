//! Histograms of durations in the buckets of Prometheus' native histograms, schema 3: eight in each power of
//! two of a *second*, each 2^(1/8) times as wide as the one before. The middle of a bucket is at most 4.4 %
//! off any value in it, the native form is exact, and every eighth bound is a classic one.
//!
//! Values are whole nanoseconds, and a bucket holds its upper bound (`le`). Bucket 0 holds what takes at most
//! 2^-23 s (119 ns), the native zero bucket; the last one what takes more than the one before it.

/// Buckets in each power of two, as a power of two; the native form's schema.
pub const SCHEMA: u32 = 3;
/// Bucket 0 ends at two to this power, in seconds.
pub const ZERO_POWER: i32 = -23;
/// The last bucket ends at two to this power, in seconds, and holds what is beyond too.
pub const MAX_POWER: i32 = 10;
/// Number of buckets.
pub const BUCKETS: usize = (((MAX_POWER - ZERO_POWER) as usize) << SCHEMA) + 1;

/// Steps in each power of two of nanoseconds that a value is first placed by, as a power of two. A step is
/// narrower than a bucket, so it lies in one, or in two that follow each other.
const STEP_POWER: u32 = 4;
/// Values of two to this power nanoseconds or more are in the last bucket.
const BEYOND_POWER: u32 = 40;
/// A power of two, so that a mask proves to the kernel's verifier what a comparison may not.
const STEPS: usize = 1024;

/// Largest number of nanoseconds in each bucket.
static UPPER_NS: [u64; BUCKETS] = upper_bounds();

/// For each step the bucket of its smallest value, and above that, from bit 16, the bucket's largest one.
static STEP: [u64; STEPS] = steps();

/// Index of the bucket that holds `value_ns`. Always below [`BUCKETS`].
///
/// Written without loops, for the kernel's verifier.
#[inline(always)]
#[must_use]
pub fn bucket_of(value_ns: u64) -> usize {
    let capped = if value_ns >> BEYOND_POWER != 0 { (1 << BEYOND_POWER) - 1 } else { value_ns };
    let shift = floor_log2(capped | 1 << STEP_POWER) - STEP_POWER;
    let step = STEP[step_of(capped, shift) & (STEPS - 1)];
    (step & 0xffff) as usize + usize::from(capped > step >> 16)
}

/// Smallest and largest number of nanoseconds in bucket `index`, both inclusive. The last one's upper end is
/// its bound, although it also counts everything above.
///
/// # Panics
/// When `index` is not below [`BUCKETS`].
#[must_use]
pub fn bucket_range_ns(index: usize) -> (u64, u64) {
    let lower = if index == 0 { 0 } else { UPPER_NS[index - 1] + 1 };
    (lower, UPPER_NS[index])
}

/// Index of bucket `index`, which is not 0, in the native form: bucket `k` there ends at 2^(k/8) seconds.
#[must_use]
pub const fn native_index(index: usize) -> i32 {
    (ZERO_POWER << SCHEMA) + index as i32
}

/// The bucket that ends at two to the power `power` seconds.
///
/// # Panics
/// When that is not one of [`ZERO_POWER`] to [`MAX_POWER`].
#[must_use]
pub const fn bucket_up_to(power: i32) -> usize {
    assert!(ZERO_POWER <= power && power <= MAX_POWER);
    ((power - ZERO_POWER) as usize) << SCHEMA
}

const fn step_of(value: u64, shift: u32) -> usize {
    (((shift as u64) << STEP_POWER) + (value >> shift)) as usize
}

const fn upper_bounds() -> [u64; BUCKETS] {
    // 2^(j/8) in units of 2^-62, by square roots and products: off by a few units of the last of its digits.
    const ONE: u128 = 1 << 62;
    let half = (ONE * ONE * 2).isqrt();
    let quarter = (half * ONE).isqrt();
    let eighth = (quarter * ONE).isqrt();
    let factors = [ONE, eighth, quarter];
    let mut roots = [ONE; 1 << SCHEMA];
    let mut j = 1;
    while j < roots.len() {
        let upper_half = if j >= 4 { half } else { ONE };
        let rest = j % 4;
        let lower = if rest == 3 { factors[1] * factors[2] / ONE } else { factors[rest] };
        roots[j] = upper_half * lower / ONE;
        j += 1;
    }
    let mut bounds = [0; BUCKETS];
    let mut index = 0;
    while index < BUCKETS {
        let power = ZERO_POWER + (index >> SCHEMA) as i32;
        bounds[index] = ((1_000_000_000 * roots[index % roots.len()]) >> (62 - power)) as u64;
        index += 1;
    }
    bounds
}

const fn steps() -> [u64; STEPS] {
    let bounds = upper_bounds();
    let mut steps = [0; STEPS];
    let mut step = 0;
    let mut bucket = 0;
    while step < STEPS {
        let power = (step >> STEP_POWER) as u32;
        let shift = if power == 0 { 0 } else { power - 1 };
        let lowest =
            if power == 0 { step as u64 } else { (step as u64 - ((shift as u64) << STEP_POWER)) << shift };
        while bucket + 1 < BUCKETS && lowest > bounds[bucket] {
            bucket += 1;
        }
        let upper = if bucket + 1 == BUCKETS { (1 << 48) - 1 } else { bounds[bucket] };
        steps[step] = upper << 16 | bucket as u64;
        step += 1;
    }
    steps
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

    extern crate std;

    /// The native form's rule in floating point: bucket `k` is (2^((k-1)/8), 2^(k/8)] seconds.
    fn by_floating_point(value_ns: u64) -> usize {
        let bound = |index: usize| 1e9 * 2_f64.powf(f64::from(native_index(index)) / 8.0);
        (0..BUCKETS).find(|index| value_ns as f64 <= bound(*index)).unwrap_or(BUCKETS - 1)
    }

    #[test]
    fn buckets_are_those_of_the_native_form() {
        // Each bound and its neighbours, and values between: floating point has digits to spare there.
        for index in 0..BUCKETS {
            let (lower, upper) = bucket_range_ns(index);
            for value in [lower, lower + (upper - lower) / 3, upper.saturating_sub(1), upper, upper + 1] {
                assert_eq!(bucket_of(value), by_floating_point(value), "{value} ns, bucket {index}");
            }
        }
        let mut value = 0_u64;
        while value < 1 << 41 {
            assert_eq!(bucket_of(value), by_floating_point(value), "{value} ns");
            value += 1 + value / 211;
        }
    }

    #[test]
    fn a_value_is_in_the_range_of_its_bucket_which_knows_it_to_4_4_percent() {
        let mut value = 0_u64;
        let mut before = 0;
        while value <= 1_024_000_000_000 {
            let index = bucket_of(value);
            let (lower, upper) = bucket_range_ns(index);
            assert!(lower <= value && value <= upper, "{value} {index} {lower} {upper}");
            assert!(index >= before, "a larger value is in no lower bucket");
            if index > 0 {
                let end = 1e9 * 2_f64.powf(f64::from(native_index(index)) / 8.0);
                let begin = 1e9 * 2_f64.powf(f64::from(native_index(index) - 1) / 8.0);
                let middle = 2.0 * begin * end / (begin + end);
                let off = (middle - value as f64).abs() / value as f64;
                assert!(off <= 0.044, "bucket {index} is {off} off {value}");
            }
            before = index;
            value += 1 + value / 997;
        }
        for huge in [1 << 40, 1 << 48, 1 << 63, u64::MAX] {
            assert_eq!(bucket_of(huge), BUCKETS - 1);
        }
        for power in 0..64 {
            assert_eq!(floor_log2(1 << power), power);
            assert_eq!(floor_log2(u64::MAX >> (63 - power)), power);
        }
    }

    #[test]
    fn buckets_follow_each_other_without_a_gap() {
        for index in 1..BUCKETS {
            assert_eq!(bucket_range_ns(index).0, bucket_range_ns(index - 1).1 + 1, "bucket {index}");
        }
        assert_eq!(bucket_range_ns(bucket_up_to(0)).1, 1_000_000_000, "a second is a bound");
        assert_eq!(bucket_range_ns(bucket_up_to(-2)).1, 250_000_000);
        assert_eq!(bucket_range_ns(BUCKETS - 1).1, 1_024_000_000_000);
        assert_eq!(native_index(bucket_up_to(0)), 0);
    }
}
