"""Reports as single HTML files: data, reward models, runs.

A page is a title and sections of blocks. `page` makes the HTML, `write_page` writes it with its numbers as JSON beside.
Everything is in the file: nothing is fetched, and a policy of the page forbids it to try.

- `Section(title, blocks, text)`: a heading, a sentence or two, and its blocks.
- `Figures([...])`: plots side by side: `line_plot`, `scatter_plot`, `histogram`, `bar_plot`, `reliability_plot`,
  `interval_plot`. Each series differs by dash or mark as well as by colour, and shows its values on hovering.
- `Table(columns, rows)`: numbers are aligned and rounded; `marked` rows carry a sign.
- `Numbers([(value, label), ...])`: the few numbers that matter, large.
- `Samples([...])`: texts, shown as they are written, whatever is in them.
- `Code(text)`, `Note(text)`: a command or a file; what a reader must not miss.

Example:
    >>> curve = line_plot("Reward", [Series("run", [1, 2, 3], [0.0, 0.5, 0.7])], y="mean score")
    >>> html = page("A run", [Section("Curves", [Figures([curve])])])
    >>> html.count("<script"), "<h2" in html
    (3, True)
"""

from lit_rlhf.report.line_plot import Series as Series, line_plot as line_plot
from lit_rlhf.report.page import (
    Code as Code,
    Figures as Figures,
    Note as Note,
    Numbers as Numbers,
    Sample as Sample,
    Samples as Samples,
    Section as Section,
    Table as Table,
    page as page,
    write_page as write_page,
)
from lit_rlhf.report.plots import (
    Interval as Interval,
    bar_plot as bar_plot,
    histogram as histogram,
    interval_plot as interval_plot,
    reliability_plot as reliability_plot,
    scatter_plot as scatter_plot,
)
from lit_rlhf.report.vega import Plot as Plot
