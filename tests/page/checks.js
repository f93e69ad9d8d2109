// What a reader needs, measured in the page: returns one sentence for every place where it is not so.
(() => {
  const wrong = [];
  const root = document.scrollingElement;
  if (root.scrollWidth > window.innerWidth) wrong.push(`the page is ${root.scrollWidth} wide`);
  if (document.querySelector("script, iframe, object, embed, link[rel=stylesheet]")) wrong.push("active content");
  for (const each of document.querySelectorAll("[href], [src], [srcset], [action]")) {
    for (const name of ["href", "src", "srcset", "action"]) {
      const to = each.getAttribute(name);
      if (to !== null && !to.startsWith("#") && !to.startsWith("data:")) wrong.push(`${each.tagName} refers to ${to}`);
    }
  }
  if (/url\(|@import/.test([...document.querySelectorAll("style")].map(s => s.textContent).join())) {
    wrong.push("the style refers to something");
  }
  for (const link of document.querySelectorAll("nav a")) {
    if (!document.querySelector(link.getAttribute("href"))) wrong.push(`${link.getAttribute("href")} is not there`);
  }

  const channels = colour => (colour.match(/[\d.]+/g) || []).map(Number);
  const light = colour => {
    const parts = channels(colour).slice(0, 3).map(c => c / 255);
    const linear = parts.map(c => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const paper = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (channels(colour)[3] !== 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const contrast = (one, other) => {
    const [a, b] = [light(one), light(other)].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  };

  let texts = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const text = walker.currentNode.textContent.trim();
    if (!text || !element.getClientRects().length || ["title", "desc"].includes(element.tagName)) continue;
    texts += 1;
    const svg = element.closest("svg");
    const style = getComputedStyle(element);
    const scale = svg ? svg.getBoundingClientRect().width / svg.width.baseVal.value : 1;
    const size = parseFloat(style.fontSize) * scale;
    if (size < 12) wrong.push(`${size} px: ${text}`);
    const ratio = contrast(svg ? style.fill : style.color, paper(element));
    if (ratio < 4.5) wrong.push(`contrast ${ratio.toFixed(2)}: ${text}`);
  }
  if (texts < 20) wrong.push(`only ${texts} texts`);

  const charts = [...document.querySelectorAll("svg.chart")].filter(each => each.getClientRects().length);
  for (const chart of charts) {
    const title = chart.querySelector("title").textContent;
    const whole = chart.getBoundingClientRect();
    if (whole.height < 100 || chart.querySelectorAll("path, rect, circle").length < 5) wrong.push(`${title} is empty`);
    if (whole.width > document.documentElement.clientWidth) wrong.push(`${title} is ${whole.width} wide`);
    const boxes = [...chart.querySelectorAll("text")].map(each => [each.getBoundingClientRect(), each.textContent]);
    for (const [box, text] of boxes) {
      const inside = box.left >= whole.left - 1 && box.right <= whole.right + 1 &&
        box.top >= whole.top - 1 && box.bottom <= whole.bottom + 1;
      if (!inside) wrong.push(`${title}: ${text} leaves the drawing`);
    }
    boxes.forEach(([one, text], place) => boxes.slice(place + 1).forEach(([other, covered]) => {
      const wide = Math.min(one.right, other.right) - Math.max(one.left, other.left);
      const high = Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top);
      if (wide > 1 && high > 5) wrong.push(`${title}: ${text} covers ${covered}`);
    }));
  }
  return { wrong, charts: charts.length, texts };
})()
