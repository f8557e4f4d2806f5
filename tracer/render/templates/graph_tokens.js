// The user's own tokens: their relevance, the way of one token's relevance, or what one query reads.
(() => {
  const page = window.graphPage, { look, state, $, htmlOf, percent, relevance, changed } = page;
  page.reading = null; // { words, weights: token -> 0 to 1 } of a query that is looked at
  if (!look) return;
  const spots = new Map(), own = new Set(look.own);

  const spot = (token, text, more = "") => {
    const made = htmlOf("span", { class: `t ${more}`, "data-t": token, tabindex: -1, role: "button", "aria-label": look.tokens[token], title: look.tokens[token] }, text);
    spots.set(token, made);
    return made;
  };
  const written = (block) => {
    const made = htmlOf("div", { class: "text", dir: block.direction });
    block.words.forEach(([before, text, ends, mark], place) => {
      made.append(before, spot(block.start + place, text, mark ? "mark" : ""));
      if (ends) made.append(htmlOf("br"));
    });
    return made;
  };
  const celled = (block) => {
    const cells = htmlOf("div", { class: "cells" });
    cells.style.gridTemplateColumns = `repeat(${block.across || Math.min(block.size, 24)}, 1fr)`;
    for (let place = 0; place < block.size; place++) cells.append(spot(block.start + place, ""));
    const made = htmlOf("div", { class: block.picture ? "picture" : "plain" }, cells);
    if (block.picture) made.prepend(htmlOf("img", { src: block.picture, alt: `the picture of ${block.space}` }));
    if (!block.picture) made.style.width = `${Math.min(360, Math.max((block.across || Math.min(block.size, 24)) * 22, 22))}px`;
    return made;
  };
  for (const block of look.blocks) {
    $("tokens").append(htmlOf("div", { class: "block" }, htmlOf("small", {}, block.space), block.words ? written(block) : celled(block)));
  }

  const some = (values, without) => Math.max(...[...spots.keys()].filter((token) => !without.has(token)).map((token) => Math.abs(values(token))), 0) || 1;
  const colour = (values, without = new Set()) => {
    const most = some(values, without);
    for (const [token, made] of spots) {
      const strong = without.has(token) ? 0 : Math.max(-1, Math.min(1, values(token) / most));
      made.style.setProperty("--v", Math.abs(strong).toFixed(3));
      made.classList.toggle("neg", strong < 0);
      made.classList.toggle("hot", Math.abs(strong) > 0.55);
      made.classList.toggle("own", own.has(token) && !page.reading);
      made.classList.toggle("on", page.reading ? page.reading.queries.includes(token) : token === state.token);
    }
  };
  const strongest = (token) => [...page.passed.keys()]
    .map((site) => [page.shareOf(site), site]).filter(([share]) => share > 0).sort((a, b) => b[0] - a[0]).slice(0, 3)
    .map(([share, site]) => `${page.data.nodes[site].short} ${percent(share)}`).join(", ");
  const say = () => {
    if (page.reading) return [page.reading.words, "what it reads is coloured; Escape goes back"];
    if (!look.method) return ["The tokens of this input", "open an attention and choose a query in its map: what it reads is coloured here"];
    if (state.token === null) return [`Relevance by ${look.method}`, "click a token to see which attentions its relevance came through"];
    const all = relevance.reduce((sum, value, token) => sum + (own.has(token) ? 0 : Math.abs(value)), 0);
    const share = `'${look.tokens[state.token]}' has ${percent(all ? relevance[state.token] / all : 0)} of the relevance`;
    const way = strongest(state.token);
    return [share, way ? `it comes most through ${way}; the bars of all attentions show its way` : "it has not come through any one attention"];
  };
  const show = () => {
    if (page.reading) colour((token) => page.reading.weights.get(token) || 0);
    else colour((token) => relevance[token], own);
    const [first, second] = say();
    $("say").replaceChildren(htmlOf("b", {}, first), " · ", second);
    const entered = [...spots.values()].find((made) => made.classList.contains("on")) || spots.values().next().value;
    for (const made of spots.values()) made.setAttribute("tabindex", made === entered ? 0 : -1);
  };
  changed.push(show);

  const chosen = (made) => {
    page.reading = null;
    const token = Number(made.dataset.t);
    page.setToken(state.token === token ? null : token);
  };
  $("tokens").addEventListener("click", (event) => {
    const made = event.target.closest("[data-t]");
    if (made && look.method) chosen(made);
  });
  $("tokens").addEventListener("keydown", (event) => {
    const made = event.target.closest("[data-t]");
    if (!made) return;
    const keys = [...spots.keys()], place = keys.indexOf(Number(made.dataset.t));
    const to = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: keys.length - 1 }[event.key];
    if (to !== undefined && keys[to] !== undefined) {
      event.preventDefault();
      made.setAttribute("tabindex", -1);
      spots.get(keys[to]).setAttribute("tabindex", 0);
      spots.get(keys[to]).focus();
    }
    if ((event.key === "Enter" || event.key === " ") && look.method) { event.preventDefault(); chosen(made); }
  });
})();
