//! Bounded line splitting, shared by FTP and SMTP.
