"""One definition of each flag that two commands share."""
