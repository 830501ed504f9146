"use strict";
(() => {
  const element = (tag, text, properties = {}) =>
    Object.assign(document.createElement(tag), text === undefined ? {} : { textContent: text }, properties);

  // Tables are sorted by the exact value of a cell where it has one, else by the first number of its text.
  const missing = (text) => text === "" || text === "–" || text === "nan";
  const firstNumber = /^[<~]?([+-]?\d[\d,]*\.?\d*(?:e[+-]?\d+)?)(?![\w])/i;
  const numberOf = (text) => {
    const found = firstNumber.exec(text);
    return found ? Number(found[1].replaceAll(",", "")) : NaN;
  };
  const keyOf = (cell) => (cell.dataset.value ?? cell.textContent).trim();

  function sortBy(table, column, falling) {
    const body = table.tBodies[0];
    const lines = [...body.rows].map((row) => ({ row, key: keyOf(row.cells[column]) }));
    const known = lines.filter(({ key }) => !missing(key));
    const numeric = known.every(({ key }) => !Number.isNaN(numberOf(key)));
    const compare = numeric
      ? (a, b) => numberOf(a.key) - numberOf(b.key)
      : (a, b) => a.key.localeCompare(b.key, "en", { numeric: true });
    known.sort((a, b) => (falling ? -compare(a, b) : compare(a, b)));
    body.append(...known.map(({ row }) => row), ...lines.filter(({ key }) => missing(key)).map(({ row }) => row));
  }

  function makeSortable(table) {
    const heads = [...(table.tHead?.rows[0]?.cells ?? [])];
    heads.forEach((head, column) => {
      if (!head.textContent.trim()) return;
      const button = element("button", undefined, { type: "button" });
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const falling = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", falling ? "descending" : "ascending");
        sortBy(table, column, falling);
      });
    });
    const first = table.tBodies[0]?.rows[0];
    [...(first?.cells ?? [])].forEach((cell, column) => {
      if (cell.classList.contains("number") || cell.style.textAlign === "right") heads[column]?.classList.add("number");
    });
  }

  // Fields in quotes may hold commas, line ends and doubled quotes.
  function parseCsv(text) {
    const lines = [[]];
    for (const [, quoted, plain, end] of text.matchAll(/(?:"((?:[^"]|"")*)"|([^",\n]*))(,|\n|$)/g)) {
      lines.at(-1).push(quoted === undefined ? plain : quoted.replaceAll('""', '"'));
      if (end === "\n") lines.push([]);
      if (end === "") break;
    }
    const [heads, ...rest] = lines;
    return { heads, lines: rest.filter((line) => line.length === heads.length) };
  }

  const texts = Object.fromEntries(JSON.parse(document.getElementById("data").textContent).map((each) => [each.name, each.csv]));

  function fillTable(table, heads, lines) {
    const head = element("thead"), body = element("tbody"), row = element("tr");
    row.append(...heads.map((name) => element("th", name, { scope: "col" })));
    head.append(row);
    for (const line of lines) {
      const made = element("tr");
      made.append(...line.map((text) => element("td", text, { className: text !== "" && !Number.isNaN(Number(text)) ? "number" : "" })));
      body.append(made);
    }
    table.replaceChildren(head, body);
    makeSortable(table);
  }

  function openTable(details) {
    if (details.querySelector("table")) return;
    const name = details.dataset.table, { heads, lines } = parseCsv(texts[name]);
    const table = element("table", undefined, { className: "sortable" });
    const box = element("div", undefined, { className: "scroll tall", tabIndex: 0 });
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", `${name}.csv`);
    const filter = element("input", undefined, { type: "search", placeholder: "show lines that hold …" });
    filter.setAttribute("aria-label", `show lines of ${name}.csv that hold these words`);
    filter.addEventListener("input", () => {
      const words = filter.value.toLowerCase().split(/\s+/);
      for (const row of table.tBodies[0].rows) {
        const text = [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      }
    });
    const save = element("a", "Save as CSV", { className: "save", download: `${name}.csv` });
    save.href = URL.createObjectURL(new Blob([texts[name]], { type: "text/csv" }));
    const tools = element("div", undefined, { className: "tools" });
    tools.append(filter, save);
    fillTable(table, heads, lines);
    box.append(table);
    details.append(tools, box);
  }

  // The profile: one case, and another one of the same engine and setting beside it.
  const classes = JSON.parse(document.getElementById("classes").textContent);

  function profile() {
    const { heads, lines } = parseCsv(texts.layers);
    const layers = lines.map((line) => Object.fromEntries(line.map((text, place) => [heads[place], text])));
    const form = document.getElementById("profile-choices");
    const { variant, engine, setting, beside } = form.elements;
    const settingOf = (layer) => `width ${layer.width}, batch ${layer.batch}, ${layer.link}, ${layer.parties} parties`;
    const secondsOf = (layer) => Number(layer.seconds || layer.emulated_seconds || 0);
    const offer = (select, names) => {
      const chosen = select.value, unique = [...new Set(names)];
      select.replaceChildren(...unique.map((name) => element("option", name, { value: name })));
      if (unique.includes(chosen)) select.value = chosen;
    };
    const byName = (found) => {
      const rows = new Map();
      for (const layer of found) {
        const row = rows.get(layer.layer) ?? { kind: layer.class, seconds: 0, bytes: 0, rounds: 0, relus: 0 };
        row.seconds += secondsOf(layer);
        row.bytes += Number(layer.bytes_sent);
        row.rounds += Number(layer.rounds);
        row.relus += Number(layer.relus);
        rows.set(layer.layer, row);
      }
      return rows;
    };
    // Both lists in one order: what only the second has stands behind its predecessor there.
    const merged = (first, second) => {
      const names = [...first];
      let place = 0;
      for (const name of second) {
        if (names.includes(name)) place = names.indexOf(name) + 1;
        else names.splice(place++, 0, name);
      }
      return names;
    };
    const short = (value) => (value === 0 ? "0" : value.toLocaleString("en", { maximumSignificantDigits: 3 }));

    function draw() {
      offer(engine, layers.filter((layer) => layer.variant === variant.value).map((layer) => layer.engine));
      const usual = layers.filter((layer) => layer.engine === engine.value);
      offer(setting, usual.filter((layer) => layer.variant === variant.value).map(settingOf));
      const same = usual.filter((layer) => settingOf(layer) === setting.value);
      offer(beside, ["nothing", ...same.map((layer) => layer.variant).filter((name) => name !== variant.value)]);
      const rows = byName(same.filter((layer) => layer.variant === variant.value));
      const others = byName(same.filter((layer) => layer.variant === beside.value));
      const total = [...rows.values()].reduce((sum, row) => sum + row.seconds, 0);
      const otherTotal = [...others.values()].reduce((sum, row) => sum + row.seconds, 0);
      const most = Math.max(...[...rows.values(), ...others.values()].map((row) => row.seconds), 1e-12);
      const against = others.size ? `; ${beside.value} ${short(1e3 * otherTotal)} ms` : "";
      const shares = Object.keys(classes).map((name) => {
        const seconds = [...rows.values()].filter((row) => row.kind === name).reduce((sum, row) => sum + row.seconds, 0);
        return { name, share: total ? seconds / total : 0 };
      });
      const words = shares.map(({ name, share }) => `${classes[name].label} ${Math.round(100 * share)} %`).join(", ");
      document.getElementById("profile-total").textContent = `${variant.value}: ${short(1e3 * total)} ms (${words})${against}.`;
      document.getElementById("profile-share").replaceChildren(...shares.map(({ name, share }) => {
        const part = element("span", undefined, { className: `class-${name} fill-${name}` });
        part.style.width = `${100 * share}%`;
        return part;
      }));
      const legend = document.getElementById("profile-beside-legend");
      legend.hidden = !others.size;
      legend.lastElementChild.textContent = beside.value;
      const table = document.getElementById("profile-table");
      const heads = ["Layer", "Time", "ms", ...(others.size ? [`ms, ${beside.value}`] : []), "MB sent", "Rounds", "ReLUs"];
      fillTable(table, heads, []);
      for (const name of merged(rows.keys(), others.keys())) {
        const row = rows.get(name), other = others.get(name), line = element("tr");
        const cell = (value, text) => {
          const made = element("td", text ?? (value === undefined ? "–" : short(value)), { className: "number" });
          if (value !== undefined) made.dataset.value = value;
          return made;
        };
        const bars = element("td", undefined, { className: "bar" });
        bars.dataset.value = row ? row.seconds : "";
        const bar = (seconds, look) => {
          const made = element("i", undefined, { className: look });
          made.style.setProperty("--w", `${(100 * seconds) / most}%`);
          bars.append(made);
        };
        if (row) bar(row.seconds, `class-${row.kind} fill-${row.kind}`);
        if (other) bar(other.seconds, "beside");
        line.append(element("td", name), bars, cell(row && 1e3 * row.seconds));
        if (others.size) line.append(cell(other && 1e3 * other.seconds));
        line.append(cell(row && row.bytes / 1e6), cell(row?.rounds), cell(row?.relus, row ? row.relus.toLocaleString("en") : undefined));
        table.tBodies[0].append(line);
      }
      [...table.tHead.rows[0].cells].slice(2).forEach((head) => head.classList.add("number"));
    }

    if (!layers.length) {
      form.replaceWith(element("p", "No case has a profile yet."));
      return;
    }
    offer(variant, layers.map((layer) => layer.variant));
    if ([...variant.options].some((option) => option.value === form.dataset.variant)) variant.value = form.dataset.variant;
    form.addEventListener("change", draw);
    draw();
    if ([...beside.options].some((option) => option.value === "baseline")) beside.value = "baseline";
    draw();
  }

  document.querySelectorAll("table.sortable").forEach((table) => table.id === "profile-table" || makeSortable(table));
  document.querySelectorAll("details.table").forEach((details) => details.addEventListener("toggle", () => openTable(details)));
  profile();
})();
