"""Tables: CSV, TSV, Parquet and Excel; numbers, categories, dates; read, modelled, filled and written as
they were."""

from .domain import TableOptions, TableSurvey, TabularDomain

__all__ = ["TableOptions", "TableSurvey", "TabularDomain"]
