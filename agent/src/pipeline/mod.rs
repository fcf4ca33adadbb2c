mod book;
mod enrich;
mod fates;
