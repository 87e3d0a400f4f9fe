//! Metrics, events, the flow table and the control socket.
