// What the page does: light or dark, which cost is shown, which arms stand out, sorted tables, and where a number
// comes from. Texts only ever become text nodes, so no name can become markup.
"use strict";
(() => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;

  const paint = () => {
    root.dataset.theme = chosen ?? (system.matches ? "dark" : "light");
    const button = document.getElementById("theme");
    if (button) button.textContent = root.dataset.theme === "dark" ? "Light" : "Dark";
  };
  paint(); // before anything is drawn
  system.addEventListener("change", paint);

  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const make = (tag, text, properties = {}) => Object.assign(document.createElement(tag), { textContent: text }, properties);

  document.addEventListener("DOMContentLoaded", () => {
    const { labels, runs } = JSON.parse(document.getElementById("data").textContent);
    const announce = (text) => { document.getElementById("announce").textContent = text; };
    for (const control of all(".control")) control.hidden = false;

    paint();
    document.getElementById("theme").addEventListener("click", () => {
      chosen = root.dataset.theme === "dark" ? "light" : "dark";
      paint();
    });

    const cost = document.getElementById("cost");
    const show = () => { for (const figure of all("figure.cost")) figure.hidden = figure.dataset.cost !== cost.value; };
    cost.addEventListener("change", show);
    show();

    // Arms that were pressed stand out; the others fade, in every figure and table.
    const pressed = new Set();
    for (const button of all(".legend .arm")) {
      button.addEventListener("click", () => {
        const arm = button.dataset.arm;
        if (!pressed.delete(arm)) pressed.add(arm);
        for (const other of all(".legend .arm")) other.setAttribute("aria-pressed", String(pressed.has(other.dataset.arm)));
        for (const part of all("main [data-arm]:not(.arm)")) {
          part.classList.toggle("faded", pressed.size > 0 && !pressed.has(part.dataset.arm));
        }
      });
    }

    for (const table of all("table.sortable")) sortable(table, announce);
    for (const plot of all("svg.plot")) walkable(plot);
    traceable(runs, labels);
  });

  function sortable(table, announce) {
    const body = table.tBodies[0];
    const original = [...body.rows];
    const headings = all("thead th[scope=col]:not(.fixed)", table);
    headings.forEach((heading, place) => {
      const column = Number(heading.dataset.column ?? place);
      const button = make("button", heading.textContent, { type: "button", className: "sort" });
      heading.replaceChildren(button);
      heading.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const down = heading.getAttribute("aria-sort") === "ascending";
        for (const other of headings) other.setAttribute("aria-sort", "none");
        heading.setAttribute("aria-sort", down ? "descending" : "ascending");
        const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
        const known = original.filter((row) => key(row) !== ""); // what has no value stays at the end
        const numeric = known.every((row) => !Number.isNaN(Number(key(row))));
        const order = numeric ? (a, b) => Number(key(a)) - Number(key(b)) : (a, b) => key(a).localeCompare(key(b));
        const sorted = [...known].sort((a, b) => (down ? order(b, a) : order(a, b)));
        body.append(...sorted, ...original.filter((row) => key(row) === ""));
        announce(`Sorted by ${button.textContent}, ${down ? "descending" : "ascending"}`);
      });
    });
  }

  // One stop of the tab key for each figure; arrow keys go from mark to mark.
  function walkable(plot) {
    const marks = all(".mark", plot);
    if (!marks.length) return;
    marks[0].setAttribute("tabindex", "0");
    plot.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const from = marks.indexOf(document.activeElement);
      if (!step || from < 0) return;
      event.preventDefault();
      marks[from].setAttribute("tabindex", "-1");
      const next = marks[(from + step + marks.length) % marks.length];
      next.setAttribute("tabindex", "0");
      next.focus();
    });
  }

  function traceable(runs, labels) {
    const tip = document.getElementById("tip");
    const dialog = document.getElementById("origin");
    const behind = (part) => part.dataset.runs.split(" ").map((place) => runs[Number(place)]);
    const heading = (part) => {
      const arms = [...new Set(behind(part).map((run) => run.arm))];
      return `${arms.join(", ")}: ${labels[part.dataset.field] ?? part.dataset.field}`;
    };
    const value = (run, part) => run.values[part.dataset.field] ?? "";

    let hinted = null;
    const place = () => {
      const box = hinted.getBoundingClientRect();
      const { width, height } = tip.getBoundingClientRect();
      const left = Math.min(Math.max(8, box.left + box.width / 2 - width / 2), root.clientWidth - width - 8);
      const above = box.top - height - 8;
      tip.style.left = `${left}px`;
      tip.style.top = `${above > 8 ? above : box.bottom + 8}px`;
    };
    const hint = (part) => {
      const own = behind(part);
      tip.replaceChildren(make("b", part.getAttribute("aria-label") ?? heading(part)));
      const said = own.length === 1 && part.hasAttribute("aria-label");
      for (const run of said ? [] : own.slice(0, 5)) tip.append(make("span", `seed ${run.seed}  ${value(run, part)}`));
      if (own.length > 5) tip.append(make("span", `and ${own.length - 5} more`));
      const facts = own.length === 1 ? own[0].facts.filter(([name]) => ["config", "code"].includes(name)) : [];
      for (const [name, text] of facts) tip.append(make("small", `${name} ${text.slice(0, 21)}`));
      if (own.length === 1) tip.append(make("small", own[0].folder));
      tip.append(make("small", "Click for everything that leads to it"));
      tip.hidden = false;
      hinted = part;
      place();
    };
    const tell = (part) => {
      tip.hidden = true;
      document.getElementById("origin-title").textContent = part.getAttribute("aria-label") ?? heading(part);
      document.getElementById("origin-runs").replaceChildren(...behind(part).map((run) => {
        const card = make("section", "");
        const title = make("h3", `${run.arm}, seed ${run.seed}`);
        const shown = value(run, part);
        if (shown) title.append(make("span", shown));
        const list = make("dl", "");
        const fact = (name, content) => list.append(make("dt", name), content);
        const link = make("a", run.folder, { href: run.link });
        const cell = make("dd", "");
        cell.append(link);
        fact("run", cell);
        for (const [name, text] of run.facts) fact(name, make("dd", text));
        card.append(title, list);
        return card;
      }));
      dialog.showModal();
      dialog.scrollTop = 0;
    };

    const target = (event) => event.target.closest?.(".trace[data-runs]");
    document.addEventListener("pointerover", (event) => {
      const part = event.pointerType === "touch" ? null : target(event);
      if (part) hint(part); else tip.hidden = true;
    });
    document.addEventListener("focusin", (event) => {
      const part = target(event);
      if (part?.matches(":focus-visible")) hint(part);
    });
    document.addEventListener("focusout", () => { tip.hidden = true; });
    document.addEventListener("scroll", () => { if (!tip.hidden) place(); }, true);
    document.addEventListener("click", (event) => {
      const part = target(event);
      if (part) tell(part);
      else if (event.target === dialog) dialog.close();
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape") tip.hidden = true;
      const part = ["Enter", " "].includes(event.key) ? target(event) : null;
      if (part && part.tagName !== "BUTTON") { // buttons click by themselves
        event.preventDefault();
        tell(part);
      }
    });
    dialog.querySelector(".close").addEventListener("click", () => dialog.close());
  }
})();
