"use strict";
// Draws each figure from the JSON beside it, in the ink of the theme, and again when the theme or the width changes.
(function () {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const plots = [];
  const root = document.documentElement;
  const PAPER_WIDTH = 680; // pixels: A4 between its margins
  const MOST_ROWS_ON_PAPER = 60; // of a figure's table: longer ones are for the screen and for the downloads

  function ink() {
    const style = getComputedStyle(root);
    return { text: style.getPropertyValue("--quiet").trim(), grid: style.getPropertyValue("--grid").trim(), ground: style.getPropertyValue("--card").trim(), under: `${style.getPropertyValue("--ground").trim()}b0` };
  }

  function themed(layout) {
    const colors = ink();
    const copy = JSON.parse(JSON.stringify(layout));
    copy.font.color = colors.text;
    copy.hoverlabel = { bgcolor: colors.ground, font: { color: colors.text } };
    for (const note of copy.annotations || []) {
      note.bgcolor = colors.under;  // a name on top of lines stays readable
      note.borderpad = 0;
    }
    copy.modebar = { color: colors.text, activecolor: colors.text, bgcolor: "rgba(0,0,0,0)" };
    for (const name of Object.keys(copy).filter((key) => /^[xy]axis\d*$/.test(key))) {
      copy[name].gridcolor = colors.grid;
    }
    return copy;
  }

  // On a telephone: smaller type, and every second tick where ticks are spelt out.
  function fitted(layout, width) {
    if (width >= 560) return layout;
    layout.font.size = 11;
    layout.margin = { l: 8, r: 8, t: layout.margin.t - 8, b: 40 }; // names may stand above the figure
    if (layout.meta && layout.meta.narrow_room) layout.xaxis.range = [0, layout.xaxis.range[1] * layout.meta.narrow_room];
    layout.legend = Object.assign({}, layout.legend, { font: { size: 11 } });
    if (layout.meta && layout.meta.narrow_height) {
      layout.height += layout.meta.narrow_height;
      layout.legend.maxheight = layout.height; // by itself it would take half of the figure, and scroll
    }
    for (const name of Object.keys(layout).filter((key) => /^xaxis\d*$/.test(key))) {
      const axis = layout[name];
      if (axis.title) axis.title.font = { size: 11 };
      if (axis.tickvals && axis.tickvals.length > 5) {
        axis.tickvals = axis.tickvals.filter((_, index) => index % 2 === 0);
        axis.ticktext = axis.ticktext.filter((_, index) => index % 2 === 0);
      }
    }
    return layout;
  }

  // The buttons are named one by one: plotly's own choice has one that uploads the figure's data to its makers.
  const config = {
    displaylogo: false,
    responsive: true,
    plotlyServerURL: "",
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
  };

  function draw(plot) {
    const layout = fitted(themed(plot.spec.layout), plot.element.clientWidth);
    if (root.classList.contains("paper")) layout.width = PAPER_WIDTH;
    window.Plotly.react(plot.element, plot.spec.data, layout, config);
  }

  for (const element of document.querySelectorAll("[data-plot]")) {
    const source = element.querySelector("script");
    const plot = { element: element, spec: JSON.parse(source.textContent) };
    source.remove();
    plots.push(plot);
    draw(plot);
  }
  const redraw = () => plots.forEach(draw);
  dark.addEventListener("change", redraw);
  window.matchMedia("(max-width: 640px)").addEventListener("change", redraw);

  // On paper: black on white, all but long tables open, figures as wide as the sheet.
  let opened = [];
  window.addEventListener("beforeprint", () => {
    root.classList.add("paper");
    opened = [...document.querySelectorAll("details:not([open])")].filter((details) => details.querySelectorAll("tr").length <= MOST_ROWS_ON_PAPER);
    opened.forEach((details) => (details.open = true));
    redraw();
  });
  window.addEventListener("afterprint", () => {
    root.classList.remove("paper");
    opened.forEach((details) => (details.open = false));
    redraw();
  });
})();
