// Headers become buttons that sort. What is sorted stands in the address, #sort=NAME&order=…, so
// that it can be sent on and outlives a reload.
"use strict";
const collator = new Intl.Collator(undefined, { numeric: true });

function sort(header, descending) {
  const table = header.closest("table"), body = table.tBodies[0], sign = descending ? -1 : 1;
  const number = header.classList.contains("number");
  const value = (row) => row.cells[header.cellIndex].dataset.value ?? "";
  const rows = [...body.rows].map((row) => [value(row), row]);
  rows.sort(([a], [b]) => {
    if (a === "" || b === "") return (a === "") - (b === ""); // what is missing stays below
    return sign * (number ? Number(a) - Number(b) : collator.compare(a, b));
  });
  for (const [, row] of rows) body.append(row);
  for (const one of table.tHead.rows[0].cells) one.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
}

function sortAsAddressed() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  for (const header of document.querySelectorAll("thead th[data-name]"))
    if (header.dataset.name === wanted.get("sort"))
      sort(header, wanted.get("order") === "descending");
}

for (const header of document.querySelectorAll("thead th[data-name]")) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...header.childNodes);
  header.append(button);
  button.addEventListener("click", () => {
    const order = header.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    location.replace("#" + new URLSearchParams({ sort: header.dataset.name, order }));
  });
}
addEventListener("hashchange", sortAsAddressed);
sortAsAddressed();
