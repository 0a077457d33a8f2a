"""Download, check, and copy datasets as Parquet."""
