"""`misplace profile RECIPE`: where the time of a real step goes, op by op, and what the reference would take."""
