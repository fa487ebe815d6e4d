"use strict";
// The page can be read without this: it opens the update that a link names, and shows fewer updates on demand.
const wanted = { all: () => true, hold: (kind) => kind !== "calm", exposed: (kind) => kind === "exposed" };

for (const button of document.querySelectorAll("button[data-show]")) {
  button.addEventListener("click", () => {
    const section = button.closest("section");
    for (const other of section.querySelectorAll("button[data-show]")) {
      other.setAttribute("aria-pressed", String(other === button));
    }
    for (const item of section.querySelectorAll("[data-kind]")) {
      item.hidden = !wanted[button.dataset.show](item.dataset.kind);
    }
  });
}

function openNamed() {
  const named = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (named instanceof HTMLDetailsElement) {
    named.hidden = false;
    named.open = true;
    named.querySelector("summary").focus();
    named.scrollIntoView({ block: "start" });
  }
}
addEventListener("hashchange", openNamed);
openNamed();
