//! Processes that stay, hide, hang or come by the thousand; see the table in `main.rs`.
