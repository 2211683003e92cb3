"""The page at `/`: label images in a browser, with no build step and nothing from elsewhere."""

from serve.http.page.openapi import OPENAPI_PATHS
from serve.http.page.routes import Page, PageState, build

__all__ = ["OPENAPI_PATHS", "Page", "PageState", "build"]
