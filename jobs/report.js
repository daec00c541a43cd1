"use strict";
(() => {
  const controls = document.getElementById("controls");
  if (controls) {
    const cards = [...document.querySelectorAll("#gallery .card")];
    const texts = cards.map((card) => card.textContent.toLowerCase());
    const buttons = [...controls.querySelectorAll("button")];
    const search = document.getElementById("search");
    const found = document.getElementById("found");
    let group = "";
    const show = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      cards.forEach((card, i) => {
        const fits = (!group || card.dataset.group === group) && words.every((word) => texts[i].includes(word));
        card.hidden = !fits;
        count += fits;
        const video = card.querySelector("video");
        if (!fits && video) video.pause();
      });
      const all = count === cards.length;
      found.textContent = all ? "" : count === 0 ? "no clip matches" : `${count} of ${cards.length}`;
    };
    buttons.forEach((button) => button.addEventListener("click", () => {
      group = button.dataset.group;
      buttons.forEach((one) => one.setAttribute("aria-pressed", String(one === button)));
      show();
    }));
    search.addEventListener("input", show);
    controls.hidden = false;
  }
  // One clip at a time: starting one stops the others.
  document.addEventListener("play", (event) => {
    document.querySelectorAll("video").forEach((video) => { if (video !== event.target) video.pause(); });
  }, true);
})();
