"""What a run found, on one page that renders offline, and its front as a picture."""

from nas.report.page import render_report
from nas.report.picture import render_front_png

__all__ = ["render_front_png", "render_report"]
