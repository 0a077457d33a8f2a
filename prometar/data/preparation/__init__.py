"""Download datasets, check them, and copy them to Parquet files."""
