"""Studies and demonstrations: each module is one result that anyone can run again."""
