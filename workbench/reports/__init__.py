"""Reports: a Result as files for people - one self-contained HTML page, and pictures."""
