//! Every byte arrives; see the table in `main.rs`.
