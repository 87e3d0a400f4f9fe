//! Sessions: listener, drivers of the FTP and SMTP machines.
