// Builds the page into ../static: one program, one style, one document. The program begins with the digest of its sources, by
// which a test tells whether it was built from what is there.
import { createHash } from "node:crypto";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { build } from "esbuild";

const digest = createHash("sha256");
for (const name of readdirSync("src").sort()) {
  digest.update(name).update("\0").update(readFileSync(`src/${name}`)).update("\0");
}
digest.update(readFileSync("package.json"));

const options = { bundle: true, minify: true, write: false, target: "es2022", legalComments: "none" };
const [program] = (
  await build({
    ...options,
    entryPoints: ["src/main.tsx"],
    format: "iife",
    jsx: "automatic",
    jsxImportSource: "preact",
  })
).outputFiles;
const [style] = (await build({ ...options, entryPoints: ["src/page.css"] })).outputFiles;
const banner =
  `// sources ${digest.digest("hex")}\n` +
  "// Preact: copyright (c) 2015-present Jason Miller, MIT licence, see NOTICE.\n";
writeFileSync("../static/page.js", banner + program.text);
writeFileSync("../static/page.css", style.text);
writeFileSync("../static/page.html", readFileSync("src/page.html"));
