//! SMTP: commands, replies, the DATA decoder and the session machine (RFC 5321).
