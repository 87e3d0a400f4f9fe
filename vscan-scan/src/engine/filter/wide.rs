//! The look at a block by AVX2: eight windows at once. The only unsafe code of the engines.
//!
//! Whether the processor can is asked once for each piece of data, of a value that is kept. Elsewhere, and in the tests
//! that compare the two, the portable way of `probe` is taken.

#![expect(unsafe_code, reason = "vector instructions, by pointers")]

#[cfg(not(target_arch = "x86_64"))]
pub(super) use self::none::Wide;
#[cfg(target_arch = "x86_64")]
pub(super) use self::x86::Wide;

#[cfg(not(target_arch = "x86_64"))]
mod none {
    use super::super::probe::{Found, Tables};

    /// There is no such way here.
    pub(in super::super) enum Wide {}

    impl Wide {
        pub(in super::super) fn of(_: &Tables) -> Option<Self> {
            None
        }

        pub(in super::super) fn scan(&self, _: &[u8], _: &mut impl FnMut(usize, Found)) -> usize {
            match *self {}
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::super::probe::{
        Found, LONG_HI, LONG_LO, MIDDLE_HI, MIDDLE_LO, SHORT_ALL, SHORT_XOR_ALL, SMALL_WORDS,
        TRIPLE_ALL, TRIPLE_WORDS, Tables, XOR_HI, XOR_LO, each,
    };
    use super::super::{BLOCK, LONG};
    use std::arch::x86_64::{
        __m128i, __m256i, _mm_cvtsi32_si128, _mm256_add_epi32, _mm256_and_si256,
        _mm256_castsi256_ps, _mm256_cmpeq_epi32, _mm256_i32gather_epi32, _mm256_loadu_si256,
        _mm256_movemask_ps, _mm256_mullo_epi32, _mm256_or_si256, _mm256_set1_epi32,
        _mm256_setzero_si256, _mm256_sllv_epi32, _mm256_srl_epi32, _mm256_srli_epi32,
        _mm256_xor_si256,
    };

    /// Tables whose sizes are those that the look-ups are made for, on a processor with AVX2.
    pub(in super::super) struct Wide<'t> {
        tables: &'t Tables,
        long_shift: __m128i,
    }

    impl<'t> Wide<'t> {
        /// None where the processor has no AVX2.
        pub(in super::super) fn of(tables: &'t Tables) -> Option<Self> {
            // Gathers of the tables read at places below these sizes.
            let fits = |table: &[u32], words: usize| table.is_empty() || table.len() == words;
            let sizes = fits(&tables.middle, SMALL_WORDS)
                && fits(&tables.short, SMALL_WORDS)
                && fits(&tables.short_xor, SMALL_WORDS)
                && fits(&tables.triples, TRIPLE_WORDS)
                && tables.long.len().is_power_of_two()
                && tables.long.len() > 1;
            if !sizes || !std::is_x86_feature_detected!("avx2") {
                return None;
            }
            // SAFETY: SSE2 belongs to every x86-64.
            let long_shift = unsafe { _mm_cvtsi32_si128(tables.long_shift() as i32) };
            Some(Self { tables, long_shift })
        }

        /// Calls `look` with each step that has to be looked at; the place from which on nothing was done, for want of
        /// a whole block.
        pub(in super::super) fn scan(
            &self,
            data: &[u8],
            look: &mut impl FnMut(usize, Found),
        ) -> usize {
            // SAFETY: `of` has seen AVX2 and the sizes of the tables.
            unsafe { self.blocks(data, look) }
        }

        /// # Safety
        /// Only behind [`Self::of`].
        #[target_feature(enable = "avx2")]
        unsafe fn blocks(&self, data: &[u8], look: &mut impl FnMut(usize, Found)) -> usize {
            let mut at = 0;
            // As `Tables::steps`. All of it lies in the loop, that what does not change is set up once.
            while let Some(block) = data.get(at..at + BLOCK + LONG + 1) {
                // SAFETY: loads of 32 bytes at up to 8 behind the beginning; the block has 41. Gathers read at hashes shifted
                // to as many bits as their tables' sizes have.
                let steps = unsafe {
                    let load =
                        |at: usize| _mm256_loadu_si256(block.as_ptr().add(at).cast::<__m256i>());
                    let number = |n: u32| _mm256_set1_epi32(n.cast_signed());
                    let gather = |table: &[u32], at: __m256i| {
                        _mm256_i32gather_epi32::<4>(table.as_ptr().cast::<i32>(), at)
                    };
                    let (one, low) = (number(1), number(31));
                    let fold = number(0x2020_2020);
                    // All ones in the lanes where the word has both bits of the hash.
                    let tested = |word: __m256i, hash: __m256i| {
                        let a = _mm256_and_si256(_mm256_srli_epi32::<10>(hash), low);
                        let b = _mm256_and_si256(_mm256_srli_epi32::<5>(hash), low);
                        let mask =
                            _mm256_or_si256(_mm256_sllv_epi32(one, a), _mm256_sllv_epi32(one, b));
                        _mm256_cmpeq_epi32(_mm256_and_si256(word, mask), mask)
                    };
                    let mixed = |lo: __m256i, hi: __m256i, by_lo: u32, by_hi: u32| {
                        _mm256_add_epi32(
                            _mm256_mullo_epi32(lo, number(by_lo)),
                            _mm256_mullo_epi32(hi, number(by_hi)),
                        )
                    };
                    let small = |table: &[u32], hash: __m256i| {
                        const SHIFT: i32 = 32 - SMALL_WORDS.trailing_zeros() as i32;
                        tested(gather(table, _mm256_srli_epi32::<SHIFT>(hash)), hash)
                    };
                    let long = |hash: __m256i| {
                        tested(
                            gather(&self.tables.long, _mm256_srl_epi32(hash, self.long_shift)),
                            hash,
                        )
                    };
                    let (lo, hi) = (load(0), load(4));
                    let (folded, folded_hi) =
                        (_mm256_or_si256(lo, fold), _mm256_or_si256(hi, fold));
                    let mut any = long(mixed(folded, folded_hi, LONG_LO, LONG_HI));
                    if !self.tables.middle.is_empty() {
                        let fifth = _mm256_and_si256(folded_hi, number(0xff));
                        let hash = mixed(folded, fifth, MIDDLE_LO, MIDDLE_HI);
                        any = _mm256_or_si256(any, small(&self.tables.middle, hash));
                    }
                    let next = load(1);
                    let mut pairs = _mm256_setzero_si256();
                    if self.tables.xor {
                        let differences = _mm256_xor_si256(lo, next);
                        let rest = _mm256_xor_si256(hi, load(5));
                        let rest = _mm256_and_si256(rest, number(0x00ff_ffff));
                        any = _mm256_or_si256(any, long(mixed(differences, rest, XOR_LO, XOR_HI)));
                    }
                    if !self.tables.short_xor.is_empty() {
                        let differences =
                            _mm256_and_si256(_mm256_xor_si256(lo, next), number(0x00ff_ffff));
                        let hash = _mm256_mullo_epi32(differences, number(SHORT_XOR_ALL));
                        any = _mm256_or_si256(any, small(&self.tables.short_xor, hash));
                    }
                    if !self.tables.short.is_empty() || !self.tables.triples.is_empty() {
                        for at in [lo, next, load(2), load(3)] {
                            if !self.tables.short.is_empty() {
                                let window = _mm256_or_si256(at, fold);
                                let hash = _mm256_mullo_epi32(window, number(SHORT_ALL));
                                any = _mm256_or_si256(any, small(&self.tables.short, hash));
                            }
                            if !self.tables.triples.is_empty() {
                                let window = _mm256_and_si256(at, number(0x00ff_ffff));
                                let hash = _mm256_mullo_epi32(window, number(TRIPLE_ALL));
                                const SHIFT: i32 = 32 - TRIPLE_WORDS.trailing_zeros() as i32;
                                let word =
                                    gather(&self.tables.triples, _mm256_srli_epi32::<SHIFT>(hash));
                                pairs = _mm256_or_si256(pairs, tested(word, hash));
                            }
                        }
                    }
                    let mask = |lanes: __m256i| {
                        _mm256_movemask_ps(_mm256_castsi256_ps(lanes)).cast_unsigned()
                    };
                    [mask(any), mask(pairs)]
                };
                each(steps, at, look);
                at += BLOCK;
            }
            at
        }
    }
}
