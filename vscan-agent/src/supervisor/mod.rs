//! Starts and watches gateway and scanner.
