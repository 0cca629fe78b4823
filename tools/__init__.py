"""Tools for a release: tables of the pages, zoo, bundled dataset."""
