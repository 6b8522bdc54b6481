"""Measures misplace.kernels and misplace.engine against what people use; imported by nobody."""
