"use strict";
(() => {
  const form = document.querySelector(".filters");
  const cards = [...document.querySelectorAll(".gallery > article")];
  const has = (card, key, run) => {
    const runs = card.dataset[key].split(" ").filter(Boolean);
    return run ? runs.includes(run) : runs.length > 0;
  };
  const filter = () => {
    const wanted = new FormData(form);
    const show = wanted.get("show"), run = wanted.get("run"), kind = wanted.get("kind");
    let count = 0;
    for (const card of cards) {
      const shown = (show === "all" || has(card, show, run)) && (!kind || card.dataset.kind === kind);
      card.hidden = !shown;
      count += shown;
    }
    form.querySelector("output").textContent = count + " of " + cards.length;
    document.querySelector(".none").hidden = count > 0;
  };
  form.hidden = false;
  form.addEventListener("change", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  filter();
})();
