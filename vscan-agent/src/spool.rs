//! Bytes of objects on their way: memory first, then an unlinked file, within one budget.
