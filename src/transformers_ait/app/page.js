// Values under the pointer. One set of listeners for the page, so results that replace each other need no set-up.
(() => {
  const ARRAYS = { metres: Uint16Array, vector: Int16Array, name: Uint16Array, values: Float32Array };
  const UNIT_STEPS = 10000;
  const decoded = new WeakMap();

  function gridOf(view) {
    const text = view.dataset.grid;
    const known = decoded.get(view);
    if (known && known.text === text) return known;
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const [channels, height, width] = view.dataset.cells.split(",").map(Number);
    const values = new ARRAYS[view.dataset.kind](bytes.buffer);
    const fresh = { text, channels, height, width, values, names: JSON.parse(view.dataset.names) };
    decoded.set(view, fresh);
    return fresh;
  }

  function worded(kind, numbers, names) {
    if (kind === "metres") return numbers[0] > 0 ? `${(numbers[0] / 1000).toFixed(2)} m` : "unknown";
    if (kind === "name") return numbers[0] > 0 ? names[numbers[0] - 1] : "nothing";
    if (kind === "values") return numbers.map((x) => (Number.isNaN(x) ? "unknown" : x.toPrecision(4))).join(", ");
    if (numbers.every((x) => x === 0)) return "unknown";
    const [x, y, z] = numbers.map((value) => value / UNIT_STEPS);
    const turned = Math.round((Math.acos(Math.min(1, Math.max(-1, -z))) * 180) / Math.PI);
    const ways = [];
    if (Math.abs(y) > 0.26) ways.push(y < 0 ? "up" : "down");
    if (Math.abs(x) > 0.26) ways.push(x > 0 ? "right" : "left");
    return `${ways.length ? `faces ${ways.join(" and ")}` : "faces the camera"}, ${turned}° off it`;
  }

  function show(view, event) {
    const image = view.querySelector("img").getBoundingClientRect();
    const [u, v] = [(event.clientX - image.left) / image.width, (event.clientY - image.top) / image.height];
    if (u < 0 || v < 0 || u >= 1 || v >= 1) return hide(view);
    const grid = gridOf(view);
    const [height, width] = view.dataset.pixels.split(",").map(Number);
    const [column, row] = [Math.floor(u * grid.width), Math.floor(v * grid.height)];
    const numbers = Array.from({ length: grid.channels }, (_, channel) =>
      grid.values[(channel * grid.height + row) * grid.width + column]);
    const x = Math.floor(((2 * column + 1) * width) / (2 * grid.width));
    const y = Math.floor(((2 * row + 1) * height) / (2 * grid.height));
    const tip = view.querySelector(".ait-tip");
    tip.replaceChildren(
      Object.assign(document.createElement("b"), { textContent: worded(view.dataset.kind, numbers, grid.names) }),
      Object.assign(document.createElement("small"), { textContent: `x ${x}, y ${y}` }),
    );
    Object.assign(tip.dataset, { x, y });
    const place = view.getBoundingClientRect();
    tip.style.left = `${event.clientX - place.left}px`;
    tip.style.top = `${event.clientY - place.top}px`;
    // Near an edge the tip goes to the other side of the pointer.
    tip.style.setProperty("--aside", u > 0.7 ? "calc(-100% - 14px)" : "14px");
    tip.style.setProperty("--above", v < 0.2 ? "14px" : "calc(-100% - 10px)");
    tip.classList.add("shown");
  }

  function hide(view) {
    view.querySelector(".ait-tip").classList.remove("shown");
  }

  for (const name of ["pointermove", "pointerdown"]) {
    document.addEventListener(name, (event) => {
      const view = event.target instanceof Element ? event.target.closest(".ait-view") : null;
      document.querySelectorAll(".ait-view").forEach((other) => other !== view && hide(other));
      if (view) show(view, event);
    }, { passive: true });
  }
  document.addEventListener("pointerleave", () => document.querySelectorAll(".ait-view").forEach(hide));
})();
