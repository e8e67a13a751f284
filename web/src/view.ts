// The page of ofg view: one registration, found beside this page.

import "./style.css";
import { show } from "./result";

void show(document.getElementById("registration")!, "./", "registration.json");
