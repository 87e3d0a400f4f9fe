//! FTP: commands, replies, addresses and the session machine (RFC 959, 2389, 2428, 3659).
