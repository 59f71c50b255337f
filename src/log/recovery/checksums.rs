//! CRC-32 of any part of a segment, at a cost that does not grow with the part's length.
//!
//! A scan that has lost its place tries each unit as the start of a record. If each try hashed
//! everything that the supposed header claims for its record, a payload that is a list of such
//! headers would make the scan quadratic. So the checksums of all prefixes that end at a block
//! boundary are computed once. With C(AB) the checksum of A followed by B, and |B| the bytes of B,
//! C(AB) = C(A) * x^(8 |B|) + C(B), in polynomials over GF(2) modulo the CRC's: C(B) is the
//! difference between two prefixes, the shorter one shifted.

use crate::log::crc::{Crc32, times_x};

/// Bytes between the prefixes that are kept. A checksum hashes at most two blocks, and the prefixes
/// of the largest segment take 4 MiB.
const BLOCK: usize = 1024;

/// x^(8 * 2^k) modulo the polynomial, at index k.
const POWERS: [u32; 32] = {
    let mut powers = [0; 32];
    // x^8.
    powers[0] = 1 << (31 - 8);
    let mut k = 1;
    while k < powers.len() {
        powers[k] = multiply(powers[k - 1], powers[k - 1]);
        k += 1;
    }
    powers
};

/// The product of two polynomials modulo the CRC's.
const fn multiply(a: u32, b: u32) -> u32 {
    let mut product = 0;
    let mut shifted = b;
    let mut bit = 31;
    loop {
        if a >> bit & 1 == 1 {
            product ^= shifted;
        }
        if bit == 0 {
            return product;
        }
        shifted = times_x(shifted);
        bit -= 1;
    }
}

/// `checksum` times x^(8 * bytes).
fn shift(checksum: u32, bytes: usize) -> u32 {
    let mut shifted = checksum;
    for (k, &power) in POWERS.iter().enumerate() {
        if bytes >> k & 1 == 1 {
            shifted = multiply(shifted, power);
        }
    }
    shifted
}

/// The checksums of the parts of a byte string shorter than 4 GiB.
pub(super) struct Checksums<'a> {
    bytes: &'a [u8],
    crc: Crc32,
    /// The checksum of the first n blocks, at index n; computed when first needed.
    prefixes: Vec<u32>,
    /// Bytes hashed so far.
    #[cfg(any(test, fuzzing))]
    pub(super) hashed: usize,
}

impl<'a> Checksums<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            crc: Crc32::new(),
            prefixes: Vec::new(),
            #[cfg(any(test, fuzzing))]
            hashed: 0,
        }
    }

    /// The CRC-32 of the bytes `[from, to)`, which lie within the byte string.
    pub(super) fn of(&mut self, from: usize, to: usize) -> u32 {
        if to - from <= 2 * BLOCK {
            let bytes = self.part(from, to);
            return self.crc.of(bytes);
        }
        if self.prefixes.is_empty() {
            let mut prefix = 0;
            self.prefixes.push(prefix);
            for block in 0..self.bytes.len() / BLOCK {
                prefix = self.extend(prefix, block * BLOCK, (block + 1) * BLOCK);
                self.prefixes.push(prefix);
            }
        }
        self.prefix(to) ^ shift(self.prefix(from), to - from)
    }

    fn prefix(&mut self, len: usize) -> u32 {
        self.extend(self.prefixes[len / BLOCK], len - len % BLOCK, len)
    }

    /// `checksum`, extended by the bytes `[from, to)`.
    fn extend(&mut self, checksum: u32, from: usize, to: usize) -> u32 {
        let bytes = self.part(from, to);
        let mut hasher = crc32fast::Hasher::new_with_initial(checksum);
        hasher.update(bytes);
        hasher.finalize()
    }

    /// The bytes `[from, to)`, about to be hashed.
    fn part(&mut self, from: usize, to: usize) -> &'a [u8] {
        #[cfg(any(test, fuzzing))]
        {
            self.hashed += to - from;
        }
        &self.bytes[from..to]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_any_part_is_that_of_its_bytes() {
        let mut random = fastrand::Rng::with_seed(1);
        let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..))
            .take(70_001)
            .collect();
        let mut checksums = Checksums::new(&bytes);
        let edges = [
            0, 1, 1023, 1024, 1025, 2048, 3073, 65_536, 69_632, 70_000, 70_001,
        ];
        for from in edges {
            for to in edges.into_iter().filter(|&to| to >= from) {
                let expected = crc32fast::hash(&bytes[from..to]);
                assert_eq!(checksums.of(from, to), expected, "[{from}, {to})");
            }
        }
    }

    #[test]
    fn after_the_first_a_checksum_costs_at_most_two_blocks_however_long_the_part_is() {
        let bytes = vec![7; 100 * BLOCK];
        let mut checksums = Checksums::new(&bytes);
        checksums.of(0, bytes.len());
        for from in [0, 1, BLOCK - 1, 50 * BLOCK + 3] {
            for to in [
                from,
                from + BLOCK,
                from + 2 * BLOCK,
                from + 2 * BLOCK + 1,
                bytes.len() - 1,
            ] {
                let before = checksums.hashed;
                checksums.of(from, to);
                let hashed = checksums.hashed - before;
                assert!(hashed <= 2 * BLOCK, "[{from}, {to})");
            }
        }
    }
}
