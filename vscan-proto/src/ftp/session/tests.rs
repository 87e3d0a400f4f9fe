//! Transcripts, split offsets, and a scripted pair with a fake clock.
