"use strict";
const table = document.querySelector("table.cohort");
if (table) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const key = (row, at) => row.cells[at].dataset.value ?? row.cells[at].textContent;
  const sort = (at, down) => {
    const number = heads[at].dataset.kind === "number", turn = down ? -1 : 1;
    const compare = (a, b) => {
      const x = key(a, at), y = key(b, at);
      if (number && (x === "" || y === "")) return (x === "") - (y === "");  // what is not known stays last
      return turn * (number ? x - y : x.localeCompare(y, undefined, {numeric: true}));
    };
    body.append(...[...body.rows].sort(compare));
    heads.forEach(head => head.removeAttribute("aria-sort"));
    heads[at].setAttribute("aria-sort", down ? "descending" : "ascending");
  };
  heads.forEach((head, at) => head.querySelector("button")?.addEventListener("click", () => {
    const sorted = head.getAttribute("aria-sort");
    sort(at, sorted ? sorted === "ascending" : head.dataset.first === "down");  // what is bad comes first
  }));
  const filter = document.querySelector(".filter input"), told = document.querySelector(".filter output");
  filter?.addEventListener("input", () => {
    const wanted = filter.value.toLowerCase();
    let shown = 0;
    for (const row of body.rows) {
      row.hidden = !row.textContent.toLowerCase().includes(wanted);
      shown += !row.hidden;
    }
    told.textContent = `${shown} of ${body.rows.length} pairs`;
  });
}
