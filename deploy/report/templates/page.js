"use strict";
(() => {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 48rem)");
  const named = /^var\((--[a-z0-9]+)\)$/;

  // A figure names its colours; what they are is the style sheet's.
  function coloured(value, style) {
    if (typeof value === "string") {
      const found = named.exec(value);
      return found ? style.getPropertyValue(found[1]).trim() : value;
    }
    if (Array.isArray(value)) return value.map((own) => coloured(own, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, own]) => [key, coloured(own, style)]));
    }
    return value;
  }

  function merged(base, own) {
    const made = { ...base };
    for (const [key, value] of Object.entries(own)) {
      const both = [made[key], value].every((one) => one && typeof one === "object" && !Array.isArray(one));
      made[key] = both ? merged(made[key], value) : value;
    }
    return made;
  }

  function look() {
    const axis = {
      gridcolor: "var(--grid)", zerolinecolor: "var(--rule)", linecolor: "var(--rule)", automargin: true,
      tickfont: { color: "var(--muted)" }, title: { font: { color: "var(--muted)" }, standoff: 8 },
      fixedrange: narrow.matches, separatethousands: true, tickangle: 0,
    };
    return {
      font: { family: getComputedStyle(document.body).fontFamily, size: narrow.matches ? 11 : 12.5, color: "var(--ink)" },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 8, r: 12, t: 10, b: 8 }, hovermode: "x unified", dragmode: narrow.matches ? false : "zoom",
      hoverlabel: { bgcolor: "var(--card)", bordercolor: "var(--rule)", font: { color: "var(--ink)" } },
      legend: { orientation: "h", x: 0, xanchor: "left", y: -0.22, yanchor: "top", traceorder: "normal", font: { color: "var(--ink)" } },
      xaxis: axis, yaxis: axis, bargap: 0.25, separators: ".\u2009",
    };
  }

  function told(plot) {
    return plot.querySelector('script[type="application/json"]').textContent;
  }

  async function draw(plot) {
    const style = getComputedStyle(root);
    const figure = JSON.parse(told(plot));
    const layout = coloured(merged(look(), figure.layout), style);
    const options = { displayModeBar: false, responsive: true, showTips: false };
    await Plotly.react(plot, coloured(figure.data, style), layout, options);
  }

  // Those in folded parts, too: paper does not wait. Where a browser gives them no size yet, they are
  // drawn again when their part is opened.
  async function drawAll() {
    const plots = [...document.querySelectorAll(".plot")];
    for (const plot of plots) await draw(plot);
    root.dataset.drawn = String(plots.length);
  }

  document.addEventListener("toggle", (event) => {
    if (event.target.open) for (const plot of event.target.querySelectorAll(".plot")) draw(plot);
  }, true);

  // Who follows a link to a part wants to see it.
  function openAsked() {
    const part = document.getElementById(`${location.hash.slice(1)}-part`);
    if (part) part.open = true;
  }
  addEventListener("hashchange", openAsked);

  // Paper is white whatever the screen is, and nobody can open a part of it.
  let folded = [];
  addEventListener("beforeprint", () => {
    root.dataset.scheme = "light";
    folded = [...document.querySelectorAll(".part:not([open])")];
    for (const part of folded) part.open = true;
    drawAll();
  });
  addEventListener("afterprint", () => {
    delete root.dataset.scheme;
    for (const part of folded) part.open = false;
    drawAll();
  });
  dark.addEventListener("change", drawAll);
  narrow.addEventListener("change", drawAll);

  function swapped(html) {
    const main = document.getElementById("content");
    const fresh = document.createElement("template");
    fresh.innerHTML = html;
    for (const plot of fresh.content.querySelectorAll(".plot")) {
      const old = document.getElementById(plot.id);
      if (old && old.matches(".plot") && told(old) === told(plot)) {
        old.setAttribute("aria-label", plot.getAttribute("aria-label"));
        plot.replaceWith(old);
      }
    }
    for (const own of fresh.content.querySelectorAll("details[id]")) {
      const old = document.getElementById(own.id);
      own.open = Boolean(old && old.open);
    }
    for (const plot of main.querySelectorAll(".plot")) Plotly.purge(plot);
    main.replaceChildren(fresh.content);
  }

  async function follow(seconds) {
    let version = "";
    for (;;) {
      await new Promise((done) => setTimeout(done, seconds * 1000));
      try {
        const answer = await fetch("news", { headers: version ? { "If-None-Match": version } : {} });
        if (!answer.ok && answer.status !== 304) throw new Error(String(answer.status));
        delete root.dataset.away;
        if (answer.status === 304) continue;
        version = answer.headers.get("ETag") || "";
        swapped(await answer.text());
        await drawAll();
      } catch (error) {
        root.dataset.away = "true"; // the server is gone: what is here stays, it may come back
      }
    }
  }

  openAsked();
  drawAll().then(() => {
    const seconds = Number(document.body.dataset.live || 0);
    if (seconds) follow(seconds);
  });
})();
