//! From report to treatment.
