(() => {
  const label = {labelColor: "var(--soft)", titleColor: "var(--soft)", labelFontSize: 11, titleFontSize: 11.5, titleFontWeight: 400};
  const config = {
    background: "transparent", font: "system-ui, 'Segoe UI', 'Liberation Sans', sans-serif",
    view: {stroke: null}, axis: {...label, gridColor: "var(--grid)", domainColor: "var(--line)", tickColor: "var(--line)", labelLimit: 220},
    legend: {...label, labelColor: "var(--ink)", orient: "top", direction: "horizontal", columns: 2, labelLimit: 260, symbolStrokeWidth: 2, symbolSize: 260, offset: 4},
    axisX: {grid: false, labelFlush: true, tickCount: 6, labelOverlap: true}, axisY: {tickCount: 5, titlePadding: 8, minExtent: 28},
    line: {color: "var(--c1)"}, area: {color: "var(--c1)"}, point: {color: "var(--c1)"}, text: {fontSize: 11},
  };
  const tip = document.getElementById("tip");
  // Values are texts of policies and data sets: they are put in as text, never as markup.
  const show = (_, event, __, value) => {
    tip.hidden = value == null || typeof value !== "object";
    if (tip.hidden) return;
    tip.replaceChildren(...Object.entries(value).filter(([, shown]) => shown !== "null" && shown !== "undefined" && shown !== "NaN").map(([name, shown]) => {
      const row = document.createElement("div"), left = document.createElement("span"), right = document.createElement("b");
      left.textContent = name; right.textContent = shown; row.append(left, right);
      return row;
    }));
    const {clientX: x, clientY: y} = event, {offsetWidth: w, offsetHeight: h} = tip;
    tip.style.left = `${Math.max(4, x + 16 + w > innerWidth ? x - w - 16 : x + 16)}px`;
    tip.style.top = `${Math.max(4, y + 16 + h > innerHeight ? y - h - 16 : y + 16)}px`;
  };
  for (const place of document.querySelectorAll(".plot")) {
    const spec = {width: "container", height: 200, autosize: {type: "fit-x", contains: "padding"}, config, ...JSON.parse(place.dataset.spec)};
    try {
      const view = new vega.View(vega.parse(vegaLite.compile(spec, {logger: vega.logger(vega.Error)}).spec), {renderer: "svg", container: place, hover: true, logLevel: vega.Error});
      view.tooltip(show).runAsync().catch((error) => { place.textContent = `This plot can't be drawn: ${error}`; });
    } catch (error) {
      place.textContent = `This plot can't be drawn: ${error}`;
    }
    place.addEventListener("pointerleave", () => { tip.hidden = true; });
  }
})();
