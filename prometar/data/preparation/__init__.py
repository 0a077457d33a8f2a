"""Download, check, and copy data sets as Parquet."""
