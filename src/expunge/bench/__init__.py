"""The benchmark: grids of cells, a store of finished work, runners, tables, tuning."""
